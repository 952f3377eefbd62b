"""What a step's results depend on, by dotted key, and what those keys are called in a config."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

from tunerun.config import typed
from tunerun.config.schema import ObjectiveConfig
from tunerun.plan.steps import STEP_TYPES, Step

# How the loss is computed, which the data do not depend on.
OBJECTIVE_SETTINGS = tuple(f"objective.{item.name}" for item in fields(ObjectiveConfig) if item.name != "kind")

_WAY_TO_TEACHER = tuple(f"answer.{key}" for key in ("url", "api_key_env", "concurrent", "retries", "timeout"))

# Keys that change neither weights nor files: a step is not run again for them.
UNFINGERPRINTED: dict[str, tuple[str, ...]] = {
    "model": (
        "cache_dir",
        "model.shape",
        "model.adapter",
        "model.chat_template",
        "model.init",
        "sha256",
        "teacher_sha256",
    ),
    "answer": ("cache_dir", "journal", *_WAY_TO_TEACHER),
    "data": ("cache_dir", "data.cache", *OBJECTIVE_SETTINGS),
    "train": (
        "model.shape",
        "name",
        "track",
        "eval",
        "allow",
        "fits",
        "flops_per_token",
        "device_flops",
        "train.log_steps",
        "train.on_nonfinite",
        "train.checkpoint_steps",
        "train.keep_checkpoints",
        "placement.devices",
    ),
    "eval": ("model.shape", "placement.devices"),
    "merge": (),
    "export": (),
    "verify": ("placement.devices",),
    "publish": ("secret_variables",),
    "serve": (),
}


# Choices that say how training is computed and not what is learned: other ones give the same training up to rounding.
_EXECUTION_KEYS = (
    "micro_batch_size",
    "accumulation_steps",
    "activation_checkpointing",
    "compile",
    "train.micro_batch_size",
    "train.activation_checkpointing",
    "train.compile",
    "placement.device",
    "placement.threads",
    "placement.strategy",
    "placement.processes",
    "placement.nodes",
    "placement.offload",
    "deepspeed",
    "machine",
)

# Fields that the plan derives, under the key a user sets.
_USER_KEYS = {
    "accumulation_steps": "train.global_batch_size",
    "activation_checkpointing": "train.activation_checkpointing",
    "answers": "stages",
    "chat_template": "model.chat_template",
    "compile": "train.compile",
    "max_shard_size_bytes": "export.max_shard_size",
    "micro_batch_size": "train.micro_batch_size",
    "on_bad_rows": "data.on_bad_rows",
    "placement.nodes": "cluster.nodes",
}


def changes_only_bits(key: str) -> bool:
    """Says whether a field of the train step leaves what is learned the same up to rounding."""
    return _within(key, _EXECUTION_KEYS)


def is_new(key: str, now: Any) -> bool:
    """Says whether a field of a step that an older record lacks does what was done before there was one."""
    return any(key in defaults and defaults[key] == now for defaults in _step_defaults())


@cache
def _step_defaults() -> tuple[dict[str, Any], ...]:
    return tuple(_defaults(kind) for kind in STEP_TYPES.values())


def _defaults(kind: type, path: str = "") -> dict[str, Any]:
    """Returns the defaults of a dataclass's fields and of the sections in it, by dotted key, as plain data."""
    found: dict[str, Any] = {}
    for item in fields(kind):
        annotation: Any = typed.field_types(kind)[item.name]
        if isinstance(annotation, type) and is_dataclass(annotation):
            found |= _defaults(annotation, f"{path}{item.name}.")
        elif typed.has_default(item):
            found[path + item.name] = typed.plain(typed.default_of(item))
    return found


def user_key(key: str) -> str:
    """Returns the config key behind a field of a step."""
    if key in _USER_KEYS:
        return _USER_KEYS[key]
    if key == "deepspeed" or key.startswith("deepspeed."):
        return "hardware.deepspeed"
    key = f"data.{key}" if key.startswith("vars.") else key
    return f"hardware.{key.removeprefix('placement.')}" if key.startswith("placement.") else key


def is_allowed(key: str, allow: Collection[str]) -> bool:
    """Says whether a key may differ from that of a stopped run.

    Args:
        key: A config key, or `data (content)` for what a section's files came to.
        allow: Keys and sections of keys.
    """
    section, _, content = key.partition(" ")
    if content:
        return any(item == section or item.startswith(section + ".") for item in allow)
    return any(key == item or key.startswith(item + ".") for item in allow)


def fingerprint_keys(step: Step) -> dict[str, Any]:
    """Returns the choices of a step that its results depend on, by dotted key."""
    ignored = UNFINGERPRINTED[step.stage]
    flat = typed.flatten(typed.plain(step))
    return {key: value for key, value in flat.items() if not _within(key, ignored)}


def _within(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(prefix + ".") for prefix in prefixes)
