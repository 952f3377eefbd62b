"""What `chat` and `serve` have in common: the device to answer on, and models on a hub."""

from __future__ import annotations

from pathlib import Path

from tunerun import machine as machines
from tunerun.errors import UserError
from tunerun.paths import looks_local, resolve_asset
from tunerun.plan.placement import Placement, whole_machine
from tunerun.serve.targets import split_adapter

NOTHING_NAMED = "name a run, a model folder, a GGUF file or a hub id; BASE+ADAPTER for an adapter on its base."


def placement() -> Placement:
    """Returns the whole machine: its GPUs when there are any."""
    return whole_machine(machines.facts())


def local_path(target: str) -> Path:
    """Returns the folder or file of a target, downloading a hub's model when it is one.

    Args:
        target: Run directory, model folder, GGUF file, or hub id; or one of them, a plus and an adapter.

    Raises:
        UserError: The target is empty.
        StageError: The model cannot be downloaded.
    """
    if not target:
        raise UserError(NOTHING_NAMED)
    path = Path(resolve_asset(target)).expanduser()
    base, adapter = split_adapter(path)
    if adapter is not None:
        return Path(f"{local_path(str(base))}+{adapter.expanduser()}")
    if path.exists() or looks_local(target):
        return path
    # Imported here: only a hub id needs the hub's client.
    from tunerun.models.fetch import fetch

    return fetch(target).folder
