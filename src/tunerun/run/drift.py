"""Refuses to go on with a trained run whose model, data or training choices changed, and names what changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.errors import Problem, UserError
from tunerun.plan import step_keys
from tunerun.plan.plan import Plan
from tunerun.plan.step_keys import user_key
from tunerun.plan.steps import ModelStep, Step
from tunerun.run.fingerprint import Fingerprint, fingerprint
from tunerun.run.record import Record, StageRecord

# What the trained weights come from.
PROTECTED = ("model", "answer", "data", "train")

_SHOWN_CHARACTERS = 60
_UNSET = "(not set)"


def is_trained(run_dir: Path, record: Record) -> bool:
    """Returns whether a run holds trained weights: finished ones, or a checkpoint to go on from."""
    train = record.stages.get("train")
    if train is None:
        return False
    return train.is_finished or any((run_dir / artifacts.CHECKPOINTS).glob(f"{artifacts.CHECKPOINT_PREFIX}*"))


def of_step(step: Step, run_dir: Path, record: Record) -> Fingerprint:
    """Computes what the results of a step of a run depend on now.

    Args:
        step: A step whose input stages are finished.
        run_dir: Of the run.
        record: Of the run.

    Raises:
        UserError: A file that it depends on cannot be read.
    """
    made = {stage: entry.artifacts for stage, entry in record.stages.items() if entry.is_finished}
    try:
        return fingerprint(step, run_dir, made)
    except OSError as error:
        raise UserError(Problem(where=str(error.filename), what=f"cannot be read: {error.strerror}.")) from error


def widened(plan: Plan, record: Record) -> Plan:
    """Keeps the weights wanted that an earlier execution fetched: a model with weights serves a step without."""
    old = record.stages.get("model")
    if old is None or not old.is_finished or not old.keys["weights"]:
        return plan
    return replace(
        plan, steps=tuple(replace(step, weights=True) if isinstance(step, ModelStep) else step for step in plan.steps)
    )


def refuse(plan: Plan, run_dir: Path, record: Record, allow: frozenset[str]) -> None:
    """Refuses a plan that would go on with weights that were trained in another way.

    Args:
        plan: To be executed in the run directory.
        run_dir: Of the run.
        record: Of the run.
        allow: Keys, or sections of keys, that may differ.

    Raises:
        UserError: Names each key that differs.
    """
    if not is_trained(run_dir, record):
        return
    found: dict[str, Problem] = {}
    for step in plan.steps:
        old = record.stages.get(step.stage)
        if old is not None and step.stage in PROTECTED:
            now = replace(of_step(step, run_dir, record), inputs={})
            found.update({problem.where: problem for problem in problems(old, now, allow)})
    if found:
        raise UserError(found.values())


def problems(old: StageRecord, new: Fingerprint, allow: frozenset[str]) -> list[Problem]:
    """Finds what differs between a recorded stage and the one to run now.

    Args:
        old: How the stage was run.
        new: How it would be run now; `inputs` may be empty when they are not known yet.
        allow: Keys, or sections of keys, that may differ.
    """
    changes = {
        user_key(key): f"was {_show(before)} and is {_show(now)} now."
        for key, before, now in _changed(old, new)
        # Training goes on, and says that the result is not exact.
        if not step_keys.changes_only_bits(key)
    }
    for name, digest in new.files.items():
        key, _, path = name.partition(" ")
        before = old.files.get(name)
        # The model step tells content from place itself: its hash is an input of the others.
        if key != "model.path" and before is not None and before != digest:
            changes[key] = f"{path} was changed (sha256 {before[:8]}.. -> {digest[:8]}..)."
    for name, digest in new.inputs.items():
        before = old.inputs.get(name)
        # What the data stage makes differs of course when its own choices were allowed to.
        explained = name != "model" and (changes or allow)
        if before is not None and before != digest and not explained:
            key = "model.path" if name == "model" else name.partition(" ")[0]
            changes[key] = f"came out different (sha256 {before[:8]}.. -> {digest[:8]}..)."
    return [
        Problem(
            where=key,
            what=f"{what} This run holds weights trained that way.",
            fix=f"Choose another run_dir, or go on all the same: tunerun resume RUN [key=value] --allow {key}",
        )
        for key, what in sorted(changes.items())
        if not step_keys.is_allowed(key, allow)
    ]


def is_settled(old: StageRecord, new: Fingerprint) -> bool:
    """Returns whether a finished stage's results stand: running it now would change them in rounding at most."""
    same = old.inputs == new.inputs and old.files == new.files
    return same and all(step_keys.changes_only_bits(key) for key, _, _ in _changed(old, new))


def _changed(old: StageRecord, new: Fingerprint) -> Iterable[tuple[str, Any, Any]]:
    # Derived fields first: where the key itself changed too, its own values are shown.
    for key in sorted({*old.keys, *new.keys}, key=lambda key: (user_key(key) == key, key)):
        before, now = old.keys.get(key, _UNSET), new.keys.get(key, _UNSET)
        if before != now and not (before is _UNSET and step_keys.is_new(key, now)):
            yield key, before, now


def _show(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
