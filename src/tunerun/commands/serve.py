"""`tunerun serve TARGET [TARGET ...] [serve.key=value]`: an OpenAI-compatible endpoint, until it is stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunerun import machine as machines
from tunerun.commands import arguments, target
from tunerun.config import resolve
from tunerun.config.schema import EngineChoice
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.plan.placement import whole_machine
from tunerun.serve.fleet import named
from tunerun.serve.protocol import EngineName
from tunerun.serve.server import serve_targets
from tunerun.serve.settings import folder_engine, server_settings
from tunerun.serve.targets import Target, resolve_checkpoints, resolve_target

_SECTIONS = ("serve.", "env.serve.")


def main(argv: Sequence[str]) -> int:
    """Serves targets.

    Args:
        argv: Run directories, model folders, adapters, GGUF files or hub ids, and `serve.port=8001`-like keys;
            `--names A,B` names them; `--checkpoints` serves each run's base model and checkpoints too; `--force` serves
            models that failed a gate.

    Returns:
        The exit code.

    Raises:
        UserError: A target, a name or a key is wrong.
    """
    options, rest = arguments.split(argv, flags=("--force", "--checkpoints"), values=("--names",))
    overrides = [item for item in rest if "=" in item]
    words = [item for item in rest if "=" not in item]
    if not words:
        raise UserError(target.NOTHING_NAMED)
    strangers = [item for item in overrides if not item.lstrip("+").startswith(_SECTIONS)]
    if strangers:
        what = "only serve.* and env.serve.* keys apply here."
        raise UserError([Problem(where=item, what=what) for item in strangers])
    config = resolve.rebuild({}, overrides, section=_SECTIONS)
    python, machine = config.env.serve.python, machines.facts()
    placement = whole_machine(machine)
    engines = _Engines(config.serve.engine, folder_engine(config.serve, placement, python))
    names = [name for value in options.get("--names", ()) for name in value.split(",")]
    targets = _targets([target.local_path(word) for word in words], names, engines, "--checkpoints" in options)
    if "--force" in options:
        for item in targets:
            if item.unverified:
                print(f"warning: {item.unverified}", file=sys.stderr)
        targets = [replace(item, unverified="") for item in targets]
    server = server_settings(config.serve, python, tuple(gpu.memory_bytes for gpu in machine.gpus))
    serve_targets(targets, config.serve, placement, server)
    return ExitCode.DONE


@dataclass(frozen=True, slots=True)
class _Engines:
    """What computes the answers."""

    chosen: EngineChoice
    """By the user."""
    folders: EngineName
    """Of model folders."""


def _targets(paths: Sequence[Path], names: Sequence[str], engines: _Engines, checkpoints: bool) -> list[Target]:
    found = [resolve_target(path, engine=engines.chosen, folders=engines.folders) for path in paths]
    targets = named(found, names)
    if not checkpoints:
        return targets
    found = []
    for path, first in zip(paths, targets, strict=True):
        found += [first, *resolve_checkpoints(path, first.name, engines.folders)]
    return found
