"""`tunerun serve TARGET [TARGET ...] [serve.key=value]`: an OpenAI-compatible endpoint, until it is stopped.

A run is served as the `serve` section of its own config says, and the command line goes before that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun import machine as machines
from tunerun.commands import arguments, target
from tunerun.config import resolve, typed
from tunerun.config.schema import EngineChoice, RunConfig, ServeConfig
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.plan.placement import whole_machine
from tunerun.run import rundir
from tunerun.serve.fleet import named
from tunerun.serve.protocol import EngineName
from tunerun.serve.server import serve_targets
from tunerun.serve.settings import folder_engine, server_settings
from tunerun.serve.targets import Target, resolve_checkpoints, resolve_target

_SECTIONS = ("serve.", "env.serve.")
# What a run's file does not decide: who can reach the models, and what runs: arguments of servers may name code, and
# the interpreter is of another section.
_TYPED_ONLY = ("host", "port", "api_key_env", "cors_origins", "extra_args")


def main(argv: Sequence[str]) -> int:
    """Serves targets.

    Args:
        argv: Run directories, model folders, adapters, GGUF files or hub ids, and `serve.port=8001`-like keys, which
            go before those of the first run's config;
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
    paths = [target.local_path(word) for word in words]
    config = _config(paths, overrides)
    python, machine = config.env.serve.python, machines.facts()
    placement = whole_machine(machine)
    engines = _Engines(config.serve.engine, folder_engine(config.serve, placement, python))
    names = [name for value in options.get("--names", ()) for name in value.split(",")]
    targets = _targets(paths, names, engines, "--checkpoints" in options)
    if "--force" in options:
        for item in targets:
            if item.unverified:
                print(f"warning: {item.unverified}", file=sys.stderr)
        targets = [replace(item, unverified="") for item in targets]
    server = server_settings(config.serve, python, tuple(gpu.memory_bytes for gpu in machine.gpus))
    serve_targets(targets, config.serve, placement, server)
    return ExitCode.DONE


def _config(paths: Sequence[Path], overrides: Sequence[str]) -> RunConfig:
    """Returns how to serve: as the first of the runs says, and the command line before it."""
    run = next((path for path in paths if (path / artifacts.MODEL).is_file()), None)
    if run is None or not (run / artifacts.CONFIG).is_file():
        return resolve.rebuild({}, overrides, section=_SECTIONS)
    file = run / artifacts.CONFIG
    section: dict[str, Any] = typed.plain(rundir.load_serve(run))
    recorded = {key: value for key, value in section.items() if key not in _TYPED_ONLY}
    config = resolve.rebuild({"serve": recorded}, overrides, section=_SECTIONS)
    now, usual = typed.plain(config.serve), typed.plain(ServeConfig())
    taken = [
        f"serve.{key}={typed.shown(value)}"
        for key, value in recorded.items()
        if value == now[key] and value != usual[key]
    ]
    if taken:
        print(f"served as {file} says: {', '.join(taken)}", file=sys.stderr)
    return config


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
