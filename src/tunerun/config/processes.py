"""Rules about several processes: how many, and what can be shared out among them."""

from __future__ import annotations

from tunerun.config.schema import ADAPTER_METHODS, RunConfig
from tunerun.errors import Problem
from tunerun.strategies import SHARDED_STRATEGIES

ELEMENTWISE_OPTIMIZERS = ("adamw", "lion")


def number(config: RunConfig) -> list[Problem]:
    """How many there are, and how a global batch is cut for them."""
    hardware, cluster = config.hardware, config.cluster
    batch, micro = config.train.global_batch_size, config.train.micro_batch_size or 1
    if hardware.accelerate is not None:
        # How many there are stands in that file.
        return []
    # What is below 1 is a problem of its own, which `ranges` reports.
    if hardware.processes is None or min(hardware.processes, cluster.nodes, batch, micro) < 1:
        return []
    world = hardware.processes * cluster.nodes
    problems = []
    if hardware.strategy == "single" and world > 1:
        what = f"single is one process, not {world}."
        fix = "Choose hardware=ddp, zero2, zero3 or fsdp2."
        problems.append(Problem(where="hardware.processes", what=what, fix=fix))
    if hardware.strategy == "zero3" and world == 1 and not hardware.offload:
        what = "zero3 with one process shares nothing and only costs time."
        fix = "Set hardware.processes to 2 or more, hardware.offload=true, or hardware=1gpu."
        problems.append(Problem(where="hardware.strategy", what=what, fix=fix))
    elif hardware.strategy in ("ddp", "zero1", "zero2", "fsdp2") and world == 1 and not hardware.offload:
        what = f"{hardware.strategy} needs at least 2 processes."
        fix = "Set hardware.processes to 2 or more, or choose hardware=1gpu."
        problems.append(Problem(where="hardware.processes", what=what, fix=fix))
    if batch % (micro * world):
        what = f"{batch} is not a multiple of micro-batch {micro} x {world} processes."
        fix = f"Set train.global_batch_size={-(-batch // (micro * world)) * micro * world}."
        problems.append(Problem(where="train.global_batch_size", what=what, fix=fix))
    return problems


def micro_batch(config: RunConfig) -> list[Problem]:
    """What one process computes at a time."""
    batch, micro = config.train.global_batch_size, config.train.micro_batch_size
    if config.hardware.processes is not None or micro is None or micro < 1 or batch % micro == 0:
        return []
    what = f"{micro} does not divide train.global_batch_size={batch}."
    return [Problem(where="train.micro_batch_size", what=what, fix="Choose a divisor.")]


def sharing(config: RunConfig) -> list[Problem]:
    """What cannot be shared out among processes."""
    strategy, train, problems = config.hardware.strategy, config.train, list[Problem]()
    if "train" not in config.stages or strategy in ("single", "ddp"):
        return problems
    if config.method.kind == "qlora" and strategy in SHARDED_STRATEGIES:
        what = f"quantised weights cannot be shared out by {strategy}."
        problems.append(Problem(where="hardware.strategy", what=what, fix="Choose hardware=ddp or zero2."))
    if train.optimizer not in ELEMENTWISE_OPTIMIZERS:
        what = f"{train.optimizer} looks at a matrix as a whole, and {strategy} gives each process a part of it."
        fix = f"Choose {' or '.join(ELEMENTWISE_OPTIMIZERS)}, or hardware=ddp."
        problems.append(Problem(where="train.optimizer", what=what, fix=fix))
    if train.ema_decay is not None:
        what = f"{strategy} has no whole weights in float32 to average."
        problems.append(Problem(where="train.ema_decay", what=what, fix="Set it to null, or choose hardware=ddp."))
    if config.objective.kind == "reward" and config.method.kind in ADAPTER_METHODS and strategy in SHARDED_STRATEGIES:
        what = f"a reward model's adapter cannot be merged under {strategy}."
        problems.append(Problem(where="hardware.strategy", what=what, fix="Choose hardware=ddp or zero2."))
    if config.method.kind == "pissa" and strategy in SHARDED_STRATEGIES:
        what = f"pissa changes the base's weights, which {strategy} shares out."
        problems.append(Problem(where="method.kind", what=what, fix="Choose method=lora, or hardware=ddp."))
    return problems
