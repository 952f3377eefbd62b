"""Separates a verb's own options from overrides, which only Hydra's grammar understands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tunerun.config import typed
from tunerun.errors import UserError

CONFIG_DIR = ("--config-dir", "-cd")
"""Names a further folder of option files, as Hydra takes it."""


def split(
    argv: Sequence[str], *, flags: Sequence[str], values: Sequence[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Takes known options out of the arguments.

    Args:
        argv: All arguments after the verb.
        flags: Options without a value.
        values: Options that take the next argument, or `--option=value`; may be repeated.

    Returns:
        Values by option (an empty list for a flag that is present), and the other arguments.

    Raises:
        UserError: An option is unknown or lacks its value.
    """
    options: dict[str, list[str]] = {}
    rest: list[str] = []
    waiting = iter(argv)
    for item in waiting:
        name, equals, value = item.partition("=")
        if name in flags and not equals:
            options.setdefault(name, [])
        elif name in values:
            found = value if equals else next(waiting, None)
            if found is None:
                raise UserError(f"{name} needs a value.")
            options.setdefault(name, []).append(found)
        elif name in flags:
            raise UserError(f"{name} takes no value.")
        elif item.startswith("-"):
            hint = _as_key(name, values) or typed.nearest(name, [*flags, *values])
            raise UserError(f"there is no option {name} here. {hint}")
        else:
            rest.append(item)
    return options, rest


def _as_key(name: str, values: Sequence[str]) -> str:
    """Says how a key is written, to who wrote one as an option where overrides are taken."""
    key = name.lstrip("-").replace("-", "_")
    if not key or not set(CONFIG_DIR) <= set(values):
        return ""
    # Imported here: only a mistake needs it.
    from tunerun.config.other_tools import keys_for

    found = keys_for(key)
    return f"Keys are written without dashes: {' or '.join(f'{item}=VALUE' for item in found)}." if found else ""


def config_dir(options: Mapping[str, Sequence[str]]) -> Path | None:
    """Returns the folder of `--config-dir`.

    Raises:
        UserError: There is no such folder.
    """
    named = [folder for name in CONFIG_DIR for folder in options.get(name, ())]
    if not named:
        return None
    folder = Path(named[-1])
    if not folder.is_dir():
        raise UserError(f"--config-dir: there is no folder {folder}.")
    return folder


def one(rest: Sequence[str], what: str) -> str:
    """Returns the only argument.

    Raises:
        UserError: There are none or several.
    """
    if len(rest) != 1:
        raise UserError(f"name {what}, and nothing else." if rest else f"name {what}.")
    return rest[0]
