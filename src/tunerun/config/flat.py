"""Writes a config as a recipe that needs no option files: every key that is not what a bare run has."""

from __future__ import annotations

from typing import Any

import yaml

from tunerun.config import typed
from tunerun.config.resolve import compose_config, literal, plain_config
from tunerun.config.schema import RunConfig

HEADER = "# @package _global_\n"


def flat_recipe(config: RunConfig, comment: str) -> str:
    """Returns a recipe that composes to a config.

    Args:
        config: What the recipe shall compose to.
        comment: First line of the recipe, which lists show.
    """
    bare, problems = typed.build(RunConfig, plain_config(compose_config([])))
    assert not problems, "the shipped defaults fit the schema"
    keys = literal(_changed(typed.plain(bare), typed.plain(config)))
    body = yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=100) if keys else ""
    return f"{HEADER}# {comment}\n{body}"


def _changed(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in now.items():
        known = before.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            inner = _changed(known, value)
            if inner:
                found[key] = inner
        elif key not in before or value != known:
            found[key] = value
    return found
