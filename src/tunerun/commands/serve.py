"""`tunerun serve TARGET [TARGET ...] [serve.key=value]`: an OpenAI-compatible endpoint, until it is stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunerun.commands import arguments, target
from tunerun.config import resolve
from tunerun.config.schema import ServeConfig
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.serve.fleet import named
from tunerun.serve.server import serve_targets
from tunerun.serve.targets import Target, resolve_checkpoints, resolve_target


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
        raise UserError("name a run, a model folder, a GGUF file or a hub id.")
    strangers = [item for item in overrides if not item.lstrip("+").startswith("serve.")]
    if strangers:
        raise UserError([Problem(where=item, what="only serve.* keys apply here.") for item in strangers])
    serve = resolve.rebuild({}, overrides, section="serve").serve
    names = [name for value in options.get("--names", ()) for name in value.split(",")]
    targets = _targets([target.local_path(word) for word in words], names, serve, "--checkpoints" in options)
    if "--force" in options:
        for item in targets:
            if item.unverified:
                print(f"warning: {item.unverified}", file=sys.stderr)
        targets = [replace(item, unverified="") for item in targets]
    serve_targets(targets, serve, target.placement())
    return ExitCode.DONE


def _targets(paths: Sequence[Path], names: Sequence[str], serve: ServeConfig, checkpoints: bool) -> list[Target]:
    targets = named([resolve_target(path, engine=serve.engine) for path in paths], names)
    if not checkpoints:
        return targets
    found = []
    for path, first in zip(paths, targets, strict=True):
        found += [first, *resolve_checkpoints(path, first.name)]
    return found
