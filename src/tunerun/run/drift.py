"""Refuses to go on with a trained run whose model, data or training choices changed, and names what changed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.errors import Problem
from tunerun.run.fingerprint import Fingerprint
from tunerun.run.record import Record, StageRecord

# What the trained weights come from.
PROTECTED = ("model", "data", "train")

# Fields that the plan derives, under the key a user sets.
_USER_KEYS = {
    "accumulation_steps": "train.global_batch_size",
    "activation_checkpointing": "train.activation_checkpointing",
    "chat_template": "model.chat_template",
    "max_shard_size_bytes": "export.max_shard_size",
    "micro_batch_size": "train.micro_batch_size",
    "placement.nodes": "cluster.nodes",
}
_SHOWN_CHARACTERS = 60
_UNSET = "(not set)"


def is_trained(run_dir: Path, record: Record) -> bool:
    """Returns whether a run holds trained weights: finished ones, or a checkpoint to go on from."""
    train = record.stages.get("train")
    if train is None:
        return False
    return train.is_finished or any((run_dir / artifacts.CHECKPOINTS).glob("step-*"))


def problems(old: StageRecord, new: Fingerprint, allow: frozenset[str]) -> list[Problem]:
    """Finds what differs between a recorded stage and the one to run now.

    Args:
        old: How the stage was run.
        new: How it would be run now; `inputs` may be empty when they are not known yet.
        allow: Keys, or sections of keys, that may differ.
    """
    changes = {
        user_key(key): f"was {_show(before)} and is {_show(now)} now." for key, before, now in _changed(old, new)
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
            fix=f"Choose another run_dir, or go on all the same: tunerun resume RUN --allow {key}",
        )
        for key, what in sorted(changes.items())
        if not _is_allowed(key, allow)
    ]


def user_key(key: str) -> str:
    """Returns the config key behind a field of a step."""
    if key in _USER_KEYS:
        return _USER_KEYS[key]
    return f"hardware.{key.removeprefix('placement.')}" if key.startswith("placement.") else key


def _changed(old: StageRecord, new: Fingerprint) -> Iterable[tuple[str, Any, Any]]:
    # Derived fields first: where the key itself changed too, its own values are shown.
    for key in sorted({*old.keys, *new.keys}, key=lambda key: (user_key(key) == key, key)):
        before, now = old.keys.get(key, _UNSET), new.keys.get(key, _UNSET)
        if before != now:
            yield key, before, now


def _is_allowed(key: str, allow: frozenset[str]) -> bool:
    return any(key == item or key.startswith(item + ".") for item in allow)


def _show(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."
