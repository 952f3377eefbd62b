"""How a stage's threads wait for each other: decided by a look at the machine, for it changes speed but no bits.

Threads that spin while they wait are twice as fast on small models, and several times slower as soon as another program
needs one of their cores.
"""

from __future__ import annotations

import os
from dataclasses import replace

from tunerun import machine
from tunerun.launch.command import Launch

_POLICY = "OMP_WAIT_POLICY"
# A core that is at work for this share is not free.
_TOLERATED_CORES = 0.3


def with_wait_policy(launch: Launch) -> Launch:
    """Lets the threads sleep while they wait when too few cores are free; a policy of the user's own stays.

    Args:
        launch: Names its number of threads in OMP_NUM_THREADS.
    """
    threads = int(launch.env["OMP_NUM_THREADS"])
    if threads == 1 or _POLICY in os.environ:
        return launch
    free = machine.facts().cores - machine.busy_cores()
    if free >= threads - _TOLERATED_CORES:
        return launch
    return replace(launch, env={**launch.env, _POLICY: "PASSIVE"})
