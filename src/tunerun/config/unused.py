"""Keys that the chosen kinds do not read: told to the user, and given their defaults back so that nobody reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunerun.config import typed
from tunerun.config.schema import RunConfig
from tunerun.config.sources import COMMAND_LINE, Sources
from tunerun.errors import Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class _Unused:
    section: str
    name: str
    by: str
    """Key of the section that chooses the kind."""
    why: str
    kinds: tuple[str, ...]
    """Of which one would read it."""
    default: Any


def without_unused(config: RunConfig, origin: Sources) -> tuple[RunConfig, list[Problem], list[str]]:
    """Gives keys that the chosen kinds do not read their defaults back.

    Args:
        config: As composed.
        origin: Where its keys were set.

    Returns:
        The config, faults for keys that were typed, and notes for those that a file set.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    for item in list(_unused(config)):
        section = getattr(config, item.section)
        key = f"{item.section}.{item.name}"
        source = origin.origin(key)
        if source == COMMAND_LINE:
            fix = f"Remove it, or choose one of: {', '.join(item.kinds)}."
            problems.append(Problem(where=key, what=item.why, fix=fix))
        elif source and getattr(section, item.name) != item.default:
            notes.append(f"{key} ({source}) {item.why}")
        cleaned = dataclasses.replace(section, **{item.name: item.default})
        config = dataclasses.replace(config, **{item.section: cleaned})
    return config, problems, notes


def switched(config: RunConfig, origin: Sources) -> frozenset[str]:
    """Returns the sections of which the kind itself was typed."""
    kinds = {f"{item.section}.{item.by}": item.section for item in _unused(config)}
    return frozenset(section for key, section in kinds.items() if origin.origin(key) == COMMAND_LINE)


def _unused(config: RunConfig) -> Iterator[_Unused]:
    for section in (item.name for item in dataclasses.fields(config)):
        values = getattr(config, section)
        for item in dataclasses.fields(values) if dataclasses.is_dataclass(values) else ():
            if "kinds" not in item.metadata:
                continue
            discriminator, kinds = item.metadata["by"], item.metadata["kinds"]
            if discriminator == "strategy" and config.hardware.accelerate is not None:
                # The strategy stands in that file.
                continue
            kind = getattr(values, discriminator)
            if kind not in kinds:
                why = f"is not used by {section}.{discriminator}={kind}."
                default = typed.default_of(item)
                yield _Unused(section=section, name=item.name, by=discriminator, why=why, kinds=kinds, default=default)
