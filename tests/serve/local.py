"""Engines as tests ask them without a gateway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tunerun.serve.local import LocalEngine
from tunerun.serve.protocol import EngineSpec


@contextmanager
def loaded(spec: EngineSpec) -> Iterator[LocalEngine]:
    """Starts an engine and waits until its model is loaded."""
    with LocalEngine(spec) as engine:
        assert engine.ready
        yield engine
