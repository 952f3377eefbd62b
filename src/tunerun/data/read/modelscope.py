"""Finds the files of a data set on ModelScope; its own library downloads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tunerun.data.read.hub import CARDS, DEFAULT_REVISION, parse, split_files
from tunerun.data.read.source import fail
from tunerun.data.rows import DataFile
from tunerun.errors import StageError, require
from tunerun.paths import DATA_SUFFIXES, PACKED_SUFFIXES


def modelscope_files(
    text: str, key: str, cache_dir: Path | None, is_data_file: Callable[[Path], bool]
) -> list[DataFile]:
    """Lists the files of a data set's split, downloading what is missing.

    Args:
        text: `org/name`, `org/name@revision`, `org/name:config` or `org/name:config:split`.
        key: Config key, for messages.
        cache_dir: Folder for downloads; None takes ModelScope's own.
        is_data_file: Says by its name whether a file can be read.

    Raises:
        UserError: A configuration or split has to be chosen, or there are no files of rows.
        MissingExtra: modelscope is not installed.
        StageError: The data set cannot be downloaded.
    """
    choice = parse(text, key)
    download = require("modelscope.hub.snapshot_download", "hub").dataset_snapshot_download
    faults = require("modelscope.hub.errors", "hub")
    revision = None if choice.revision == DEFAULT_REVISION else choice.revision
    # No code of a data set is ever downloaded.
    wanted = [*CARDS, *(f"*{suffix}" for suffix in (*DATA_SUFFIXES, *PACKED_SUFFIXES))]
    try:
        found = download(choice.name, revision=revision, cache_dir=cache_dir, allow_patterns=wanted)
    except (faults.HubError, OSError, ValueError) as error:
        raise StageError(f"the data set {choice.name} cannot be downloaded from ModelScope: {error}") from error
    folder = Path(found)
    inside = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    names = [name for name in inside if name in CARDS or is_data_file(Path(name))]
    if set(names) <= set(CARDS):
        fail(key, None, f"{choice.name} holds no files that are read.", "Download it and convert it to JSON lines.")
    chosen = split_files(choice, key, folder, names)
    return [DataFile(folder / name, f"{choice.name}/{name}", text, revision) for name in chosen]
