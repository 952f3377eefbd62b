"""`tunerun serve TARGET [serve.key=value]`: an OpenAI-compatible endpoint, until it is stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from tunerun.commands import arguments, target
from tunerun.config import resolve
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.serve.server import serve_target
from tunerun.serve.targets import resolve_target


def main(argv: Sequence[str]) -> int:
    """Serves a target.

    Args:
        argv: Run directory, model folder, GGUF file or hub id, and `serve.port=8001`-like keys;
            `--force` serves a model that failed a gate.

    Returns:
        The exit code.

    Raises:
        UserError: The target or a key is wrong.
    """
    options, rest = arguments.split(argv, flags=("--force",), values=())
    overrides = [item for item in rest if "=" in item]
    name = arguments.one([item for item in rest if "=" not in item], "a run, a model folder, a GGUF file or a hub id")
    strangers = [item for item in overrides if not item.lstrip("+").startswith("serve.")]
    if strangers:
        raise UserError([Problem(where=item, what="only serve.* keys apply here.") for item in strangers])
    config = resolve.rebuild({}, overrides, section="serve")
    found = resolve_target(target.local_path(name), engine=config.serve.engine)
    if "--force" in options and found.unverified:
        print(f"warning: {found.unverified}", file=sys.stderr)
        found = replace(found, unverified="")
    serve_target(found, config.serve, target.placement())
    return ExitCode.DONE
