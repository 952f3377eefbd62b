"""Compiled decoder layers.

One layer at a time: they share their graphs, so that the time to compile does not grow with their number. Attention
stays outside the graphs, as its segments differ in every batch.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

from tunerun.errors import Problem, UserError

_COMPILERS = ("g++", "c++", "clang++", "gcc", "cc", "clang")


def compile_layers(network: Any, backend: str = "inductor") -> None:
    """Makes each decoder layer run compiled from its next call on; no module or parameter gets another name.

    Args:
        network: A transformers model, adapter layers included.
        backend: Name of a backend of torch.compile.

    Raises:
        UserError: There is no compiler for what inductor writes: C++ on a CPU, and C around its kernels for GPUs.
    """
    if backend == "inductor" and "CXX" not in os.environ and not any(map(shutil.which, _COMPILERS)):
        what = "layers are to be compiled, and there is no C++ compiler."
        raise UserError(Problem(where="train.compile", what=what, fix="Install g++, or set train.compile=false."))
    for layer in network.get_decoder().layers:
        layer.compile(backend=backend)
