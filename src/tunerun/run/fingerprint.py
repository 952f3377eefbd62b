"""What a stage's results depend on, so that it is run again exactly when one of these changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.base_model import read_base
from tunerun.config.data_sources import data_paths
from tunerun.hashes import path_sha256, stat_identity
from tunerun.paths import resolve_asset
from tunerun.plan import step_keys
from tunerun.plan.steps import (
    INPUTS,
    AnswerStep,
    DataStep,
    EvalStep,
    ExportStep,
    MergeStep,
    ModelStep,
    Step,
    TrainStep,
    VerifyStep,
)

_CHAT_TEMPLATE_KEY = "model.chat_template"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """What a stage's results depend on."""

    keys: Mapping[str, Any]
    """Choices of the step, by dotted key."""
    inputs: Mapping[str, str]
    """Hashes of what earlier stages made: `stage path` to sha256."""
    files: Mapping[str, str]
    """Hashes of the user's files: `key path` to sha256."""

    @property
    def digest(self) -> str:
        """One hash over all of it."""
        parts = {"keys": self.keys, "inputs": self.inputs, "files": self.files}
        return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def fingerprint(step: Step, run_dir: Path, made: Mapping[str, tuple[Artifact, ...]]) -> Fingerprint:
    """Computes the fingerprint of a step.

    Args:
        step: A step whose input stages are finished.
        run_dir: The run directory.
        made: Artifacts of the finished stages, by stage.

    Raises:
        OSError: A file that it depends on cannot be read.
    """
    inputs: dict[str, str] = {}
    for stage in INPUTS[step.stage]:
        if stage == "model" and stage in made:
            # model.json holds the absolute folder; the same weights in another place are the same input.
            inputs[stage] = read_base(run_dir).sha256
        elif stage in made:
            inputs.update({f"{stage} {artifact.path}": artifact.sha256 for artifact in made[stage]})
    return Fingerprint(keys=step_keys.fingerprint_keys(step), inputs=inputs, files=user_files(step))


def user_files(step: Step) -> dict[str, str]:
    """Hashes the files and folders outside the run directory that a step reads.

    A path that does not exist is left out: it is a hub id or a shipped name, or the stage will say that it is missing.
    """
    found: dict[str, str] = {}
    for key, path in _paths(step):
        target = Path(resolve_asset(path))
        if target.exists():
            # The model step hashes the weights itself and is cheap to repeat: no need to read them all here too.
            is_model = key == "model.path"
            found[f"{key} {path}"] = stat_identity(target) if is_model else path_sha256(target, "files")
    return found


def base_is_there(run_dir: Path, made: tuple[Artifact, ...]) -> bool:
    """Says whether the model that a stage found is still there: it may lie in a cache that a user emptied."""
    return all(item.path != artifacts.MODEL for item in made) or read_base(run_dir).folder.is_dir()


def _paths(step: Step) -> list[tuple[str, str]]:
    """Returns the paths among a step's choices, by the key a user knows."""
    match step:
        case ModelStep():
            found = [("model.path", step.model.path)]
        case AnswerStep():
            found = [("answer.prompts", path) for path in step.answer.prompts]
        case DataStep():
            found = [*data_paths(step.data), (_CHAT_TEMPLATE_KEY, step.chat_template)]
        case TrainStep():
            found = [("model.adapter", step.model.adapter)]
        case MergeStep():
            found = [("model.adapter", _absolute(step.adapter)), (_CHAT_TEMPLATE_KEY, step.chat_template)]
        case EvalStep():
            tasks = [("eval.lm_eval", name) for name in step.eval.lm_eval if Path(name).is_file()]
            folder = ("eval.lm_eval_tasks_dir", step.eval.lm_eval_tasks_dir)
            found = [("model.adapter", _absolute(step.adapter)), *tasks, folder]
        case VerifyStep():
            found = [("model.adapter", _absolute(step.adapter))]
        case ExportStep():
            found = [("model.adapter", _absolute(step.adapter)), (_CHAT_TEMPLATE_KEY, step.chat_template)]
        case _:
            found = []
    return [(key, path) for key, path in found if path is not None]


def _absolute(path: str | None) -> str | None:
    # A relative one lies in the run directory and is an artifact of another stage.
    return path if path is not None and Path(path).is_absolute() else None
