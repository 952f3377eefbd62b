"""Runs the serve stage."""

from __future__ import annotations

from pathlib import Path

from tunerun.artifacts import Artifact
from tunerun.plan.steps import ServeStep
from tunerun.serve.server import serve_targets
from tunerun.serve.settings import folder_engine, server_settings
from tunerun.serve.targets import resolve_target


def run(step: ServeStep, out: Path) -> list[Artifact]:
    """Serves what the run made until a signal comes.

    Args:
        step: How to serve.
        out: The run directory.

    Returns:
        Nothing: serving makes no artifacts.

    Raises:
        UserError: The run has no model, it failed its gates, or the address or key is not as it should be.
        StageError: The engine cannot start.
    """
    server = server_settings(step.serve, step.python, step.gpu_bytes)
    folders = folder_engine(step.serve, step.placement, step.python)
    serve_targets([resolve_target(out, engine=step.serve.engine, folders=folders)], step.serve, step.placement, server)
    return []
