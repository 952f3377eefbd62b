"""How the processes of a training share the model: see `engine`."""

from __future__ import annotations

import importlib
from typing import Any

from tunerun.strategies import Strategy
from tunerun.train.engines.engine import Engine, Parts

__all__ = ["Engine", "Parts", "make_engine"]

# By strategy; imported by name, so that DeepSpeed is loaded only where it is asked for.
ENGINES: dict[Strategy, str] = {
    "single": "tunerun.train.engines.plain:Plain",
    "ddp": "tunerun.train.engines.plain:Plain",
    "zero1": "tunerun.train.engines.zero:Zero",
    "zero2": "tunerun.train.engines.zero:Zero",
    "zero3": "tunerun.train.engines.zero:Zero",
    "fsdp2": "tunerun.train.engines.sharded:Sharded",
}


def make_engine(parts: Parts) -> Engine:
    """Puts a network in the hands of the engine of its placement.

    Raises:
        MissingExtra: DeepSpeed is needed and not installed.
    """
    module, _, name = ENGINES[parts.placement.strategy].partition(":")
    kind: Any = vars(importlib.import_module(module))[name]
    engine: Engine = kind(parts)
    return engine
