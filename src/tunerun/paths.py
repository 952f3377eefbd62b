"""Where tunerun's own files are, and where a user's are; which endings the files of rows have."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
ASSET_SCHEME = "tunerun://"

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
DELIMITED_SUFFIXES = (".csv", ".tsv")
TEXT_SUFFIXES = (".txt",)
PACKED_SUFFIXES = (".gz", ".zst")
"""Endings of text files that are unpacked while they are read; the content decides, not the name."""
WORKBOOK_SUFFIXES = (".xlsx", ".xlsm")
"""Endings of Excel workbooks."""
COLUMNAR_SUFFIXES = (".parquet", ".arrow")
"""Endings of files that hold column by column."""
PACKABLE_SUFFIXES = (*JSON_SUFFIXES, *DELIMITED_SUFFIXES, *TEXT_SUFFIXES)
"""Endings of text files of rows, which may be packed."""
DATA_SUFFIXES = (*PACKABLE_SUFFIXES, *WORKBOOK_SUFFIXES, *COLUMNAR_SUFFIXES)
"""Endings of files of rows."""


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
    suffixes = (*DATA_SUFFIXES, *PACKED_SUFFIXES, ".gguf")
    return path.startswith((".", "/", "~", ASSET_SCHEME)) or path.endswith(suffixes) or path.count("/") != 1


def nearest(path: Path) -> str:
    """Suggests what lies beside a path that does not exist and is named almost so; empty when nothing is."""
    # Imported here: only a mistake needs it.
    from difflib import get_close_matches

    folder = path.parent
    beside = [file.name for file in sorted(folder.iterdir())] if folder.is_dir() else []
    near = get_close_matches(path.name, beside, n=1, cutoff=0.8)
    return f"Did you mean {folder / near[0]}?" if near else ""


def user_cache() -> Path:
    """Returns where tunerun keeps what can be made again: `$XDG_CACHE_HOME/tunerun`, or `~/.cache/tunerun`."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "tunerun"


def user_folders(name: str) -> tuple[Path, ...]:
    """Returns `./conf` or `./recipes` when the current directory has one that is not the shipped one."""
    folder = Path.cwd() / name
    return (folder,) if folder.is_dir() and folder.resolve() != shipped(name).resolve() else ()
