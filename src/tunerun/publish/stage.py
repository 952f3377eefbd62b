"""Runs the publish stage."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunerun import artifacts, redact
from tunerun.artifacts import Artifact
from tunerun.errors import Problem, UserError
from tunerun.formats import verdicts
from tunerun.plan.steps import PublishStep
from tunerun.publish.files import File, collect, refuse_secrets
from tunerun.publish.hubs import UPLOADERS
from tunerun.publish.ollama import create_model

REPORT = f"{artifacts.PUBLISH}/{artifacts.STAGE_REPORT}"


def run(step: PublishStep, out: Path) -> list[Artifact]:
    """Uploads what a run made, and creates the model in Ollama.

    Args:
        step: What goes where.
        out: The run directory.

    Returns:
        The report of what was uploaded.

    Raises:
        UserError: A gate of the run failed and publishing is not forced, or a file holds a secret.
        StageError: There is nothing to publish, or the hub or Ollama refuses.
    """
    publish = step.publish
    doubt = verdicts.unverified(out)
    if doubt and not publish.force:
        fix = "Mend it, or publish it all the same: publish.force=true"
        raise UserError(Problem(where="publish", what=f"{doubt}.", fix=fix))
    unproved = verdicts.unproved(out)
    if unproved:
        print(f"warning: {unproved}")
    report: dict[str, Any] = {
        "schema": artifacts.REPORT_SCHEMA,
        "dry_run": publish.dry_run,
        "unverified": doubt,
        "unproved": unproved,
    }
    if publish.repo is not None:
        report["upload"] = _upload(step, out)
    if publish.ollama is not None:
        report["ollama"] = {"model": publish.ollama, "modelfile": _create(step, publish.ollama, out)}
    artifacts.write_json(out / REPORT, report)
    return [artifacts.describe(out, "publish-report", REPORT)]


def _upload(step: PublishStep, out: Path) -> dict[str, Any]:
    publish = step.publish
    files = collect(out, step.artifacts, publish.folder)
    refuse_secrets(files, redact.secret_values(os.environ, step.secret_variables))
    _show(files)
    found: dict[str, Any] = {
        "hub": publish.hub,
        "repo": publish.repo,
        "revision": publish.revision,
        "files": [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in files],
    }
    if publish.dry_run:
        print(f"dry run: nothing was sent to {publish.repo}")
        return found
    done = UPLOADERS[publish.hub](publish, files, f"Upload {step.name} with tunerun")
    print(f"{len(done.uploaded)} of {len(files)} files sent, the others were there: {done.url}")
    return {**found, **asdict(done)}


def _create(step: PublishStep, name: str, out: Path) -> str | None:
    if step.publish.dry_run:
        print(f"dry run: {name} was not created in Ollama")
        return None
    modelfile = create_model(out, name)
    print(f"created in Ollama from {modelfile}: ollama run {name}")
    return modelfile


def _show(files: Sequence[File]) -> None:
    for file in files:
        print(f"{file.bytes:>16,} bytes  {file.name}")
    print(f"{sum(file.bytes for file in files):>16,} bytes in {len(files)} files")
