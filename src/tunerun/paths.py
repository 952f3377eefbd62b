"""Where tunerun's own files are, and where a user's are."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
ASSET_SCHEME = "tunerun://"


def shipped(name: str) -> Path:
    """Returns the shipped `conf` or `recipes` folder: inside the wheel, or beside `src` in a checkout."""
    in_wheel = _PACKAGE / "_shipped" / name
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parents[1] / name


def resolve_asset(path: str) -> str:
    """Turns `tunerun://sprout` into the absolute path of that shipped file or folder; other paths stay."""
    if not path.startswith(ASSET_SCHEME):
        return path
    return str(_PACKAGE / "assets" / path.removeprefix(ASSET_SCHEME))


def looks_local(path: str) -> bool:
    """Says whether a path can only be a file or folder, not a hub id (`org/name`, `org/name:config:split`)."""
    suffixes = (
        ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".gz", ".zst", ".xlsx", ".parquet", ".arrow", ".gguf",
    )  # fmt: skip
    return path.startswith((".", "/", "~", ASSET_SCHEME)) or path.endswith(suffixes) or path.count("/") != 1


def user_cache() -> Path:
    """Returns where tunerun keeps what can be made again: `$XDG_CACHE_HOME/tunerun`, or `~/.cache/tunerun`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tunerun"


def user_folders(name: str) -> tuple[Path, ...]:
    """Returns `./conf` or `./recipes` when the current directory has one that is not the shipped one."""
    folder = Path.cwd() / name
    return (folder,) if folder.is_dir() and folder.resolve() != shipped(name).resolve() else ()
