"""Model folders and what is done with them: find, load, adapt, generate."""

import logging

# Before a module here imports peft, and peft bitsandbytes: at its import it tells on stderr of a kernel that it would
# download, which no layer here takes (see `load._compute_alike`), and its int8 layers say at every step that they take
# half precision.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
