"""`tunerun plan ...`: prints what a run would do, without torch, a download or a GPU."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tunerun import redact
from tunerun.commands import arguments
from tunerun.commands.prepare import Prepared, prepare
from tunerun.config.credentials import secrets_of
from tunerun.config.resolve import resolve
from tunerun.errors import ExitCode
from tunerun.launch import cluster, command
from tunerun.launch.cluster import Typed
from tunerun.plan import plan as plans
from tunerun.plan.render import render


def main(argv: Sequence[str]) -> int:
    """Composes and plans.

    Args:
        argv: Overrides, `--json`, `--config-dir FOLDER`.

    Returns:
        The exit code: 0 also when this machine could not run the plan, which is then a warning.
    """
    options, overrides = arguments.split(argv, flags=("--json",), values=arguments.CONFIG_DIR)
    config_dir = arguments.config_dir(options)
    prepared = prepare(resolve(overrides, config_dir))
    obstacles = [str(problem) for problem in prepared.obstacles]
    run_dir = Path(prepared.plan.run_dir)
    files = _files(prepared, Typed(arguments=tuple(overrides), directory=Path.cwd(), config_dir=config_dir))
    commands = {step.stage: list(command.command(step, run_dir).argv) for step in prepared.plan.steps}
    if "--json" in options:
        data = {**plans.to_json(prepared.plan), "commands": commands, "files": files, "obstacles": obstacles}
        print(json.dumps(data, ensure_ascii=False, indent=2))
    else:
        print(render(prepared.plan, commands=commands, files=files, obstacles=obstacles))
    return ExitCode.DONE


def _files(prepared: Prepared, typed: Typed) -> dict[str, str]:
    """Renders what is handed to a cluster, by file name."""
    secrets = secrets_of(prepared.config, os.environ)
    files = cluster.files(prepared.plan, prepared.config, typed)
    return {name: redact.text(text, secrets) for name, text in files.items()}
