"""Finds the files of a data set on a Hugging Face hub or a mirror, downloading what is missing.

`datasets` says which files a configuration and a split consist of: it is shown a folder with the data set's card and
empty files of the right names. It does not read them, because it guesses types ("007" becomes 7), knows no lines, and
cannot go on with an interrupted download. No code of a data set is ever downloaded.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tunerun import artifacts
from tunerun.data.read.source import fail
from tunerun.data.rows import DataFile
from tunerun.errors import StageError
from tunerun.models import hub
from tunerun.models.hub import HubFile, Listing, Repository
from tunerun.progress import Progress

DEFAULT_REVISION = "main"

_LISTING_SCHEMA = 1
# What says how files make up configurations and splits.
CARDS = ("README.md", ".huggingface.yaml")
_SPEC = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(:(?P<config>[^:]*))?(:(?P<split>[\w.-]+))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Choice:
    """What `data.path` says about a data set: `org/name@revision:config:split`, all but the name optional."""

    text: str
    name: str
    revision: str
    config: str | None
    split: str | None


def parse(text: str, key: str) -> Choice:
    """Takes a data set's address apart.

    Args:
        text: `org/name`, `org/name@revision`, `org/name:config` or `org/name:config:split`.
        key: Config key, for messages.

    Raises:
        UserError: It is none of these.
    """
    found = _SPEC.fullmatch(text)
    if found is None:
        fix = "Write org/name, org/name:config or org/name:config:split; @revision may follow the name."
        fail(key, None, f"{text} is neither a file or folder that exists nor a data set on a hub.", fix)
    return Choice(text, found["name"], found["revision"] or DEFAULT_REVISION, found["config"] or None, found["split"])


def hub_files(
    text: str, key: str, cache_dir: Path | None, is_data_file: Callable[[Path], bool], streaming: bool
) -> list[DataFile]:
    """Lists the files of a data set's split, downloading what is missing.

    Args:
        text: As for `parse`.
        key: Config key, for messages.
        cache_dir: Folder for downloads; None takes the hub's own.
        is_data_file: Says by its name whether a file can be read.
        streaming: Whether the files are not downloaded, but read as they come.

    Raises:
        UserError: A configuration or split has to be chosen, or the files are of a kind that is not read.
        StageError: The hub does not answer, refuses, or has no such data set.
    """
    choice = parse(text, key)
    repository = hub.repository(choice.name, cache_dir, "dataset")
    if streaming and hub.is_offline():
        what = f"the data set {choice.name} is to be read from its hub as it comes (data.streaming)"
        raise StageError(f"{what}, and HF_HUB_OFFLINE forbids that. Unset it, or set data.streaming=false.")
    listing = _listing(repository, choice.revision)
    by_name = {file.path: file for file in listing.files}
    _download(repository, listing.commit, [by_name[name] for name in CARDS if name in by_name])
    wanted = split_files(choice, key, repository.snapshot(listing.commit), list(by_name))
    foreign = [name for name in wanted if not is_data_file(Path(name))]
    if foreign:
        fix = "Download it and convert it to JSON lines."
        fail(key, None, f"{choice.name} is kept in files that are not read, such as {foreign[0]}.", fix)
    if streaming:
        names = [f"{choice.name}/{name}" for name in wanted]
        return [DataFile(Path(name), name, text, listing.commit, streamed=True) for name in names]
    _download(repository, listing.commit, [by_name[name] for name in wanted])
    folder = repository.snapshot(listing.commit)
    return [DataFile(folder / name, f"{choice.name}/{name}", text, listing.commit) for name in wanted]


def _listing(repository: Repository, revision: str) -> Listing:
    """Asks the hub which files there are; what it said last time does when it may not or cannot be asked."""
    cached = _cached_listing(repository, revision)
    if cached is not None and (hub.is_offline() or hub.is_commit(revision)):
        return cached
    if hub.is_offline():
        raise StageError(
            f"the data set {repository.name} at {revision} is not in {repository.cache}, and HF_HUB_OFFLINE forbids to "
            "download it. Give a local file or folder by data.path=./..., or unset HF_HUB_OFFLINE."
        )
    try:
        with hub.connect(repository) as client:
            listing = hub.list_files(client, repository, revision)
    except hub.Unreachable as error:
        if cached is not None:
            print(f"{error}; taking the copy of {repository.name} in the cache, commit {cached.commit}")
            return cached
        raise StageError(
            f"the data set {repository.name} is not in {repository.cache}, and {error}. Check the network, set "
            "HF_ENDPOINT to a mirror, or give a local file or folder by data.path=./..."
        ) from error
    listing = Listing(commit=listing.commit, files=tuple(file for file in listing.files if _is_inside(file.path)))
    files = [{"path": file.path, "size": file.size, "blob": file.blob} for file in listing.files]
    path = _listing_path(repository, listing.commit)
    path.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(path, {"schema": _LISTING_SCHEMA, "files": files})
    hub.remember(repository, revision, listing.commit)
    return listing


def _cached_listing(repository: Repository, revision: str) -> Listing | None:
    commit = repository.cached_commit(revision)
    if commit is None or not _listing_path(repository, commit).is_file():
        return None
    files = artifacts.read_json(_listing_path(repository, commit))["files"]
    return Listing(commit=commit, files=tuple(HubFile(**file) for file in files))


def _listing_path(repository: Repository, commit: str) -> Path:
    # Beside the folders that the hub's own tools know, and ignore when they list what is cached.
    return repository.folder / "listings" / f"{commit}.json"


def _is_inside(name: str) -> bool:
    # The hub's names become paths here.
    return not name.startswith("/") and ".." not in PurePosixPath(name).parts and "\0" not in name


def _download(repository: Repository, commit: str, files: Sequence[HubFile]) -> None:
    missing = [file for file in files if not (repository.snapshot(commit) / file.path).is_file()]
    if not missing:
        return
    if hub.is_offline():
        what = f"{missing[0].path} of the data set {repository.name} is not in {repository.cache}"
        raise StageError(f"{what}, and HF_HUB_OFFLINE forbids to download it. Unset HF_HUB_OFFLINE.")
    hub.check_disk(repository, hub.missing_bytes(repository, tuple(missing)))
    total = sum(file.size for file in missing)
    with hub.connect(repository) as client, Progress("download data", total=total, unit="bytes") as progress:
        for file in missing:
            hub.download(client, repository, commit, file, progress.advance)


def split_files(choice: Choice, key: str, snapshot: Path, names: Sequence[str]) -> list[str]:
    """Returns the files of the chosen split, in order.

    Args:
        choice: What `data.path` says.
        key: Config key, for messages.
        snapshot: Folder that holds the data set's cards.
        names: Of all its files.

    Raises:
        UserError: A configuration or split has to be chosen, or there are no files of rows.
    """
    with tempfile.TemporaryDirectory(prefix="tunerun-") as scratch:
        folder = Path(scratch).resolve() / "data_set"
        _make_shadow(folder, snapshot, names)
        splits = _splits(choice, key, folder, Path(scratch) / "cache")
    name = _chosen_split(choice, key, list(splits))
    known = set(names)
    found = [os.path.relpath(path, folder).replace(os.sep, "/") for path in splits[name]]
    outside = [path for path in found if path not in known]
    if outside:
        fail(key, None, f"{choice.name} names a file outside of its repository: {outside[0]}.")
    return found


def _make_shadow(folder: Path, snapshot: Path, names: Sequence[str]) -> None:
    """Fills a folder with the cards of a data set and empty files in place of its data."""
    folder.mkdir()
    for name in names:
        # No code, and no `dataset_infos.json`, which old scripts left behind.
        if name in CARDS:
            shutil.copyfile(snapshot / name, folder / name)
        elif not name.endswith(".py") and name != "dataset_infos.json":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()


def _splits(choice: Choice, key: str, folder: Path, cache: Path) -> Mapping[str, Sequence[str]]:
    """Asks `datasets` for the files of each split of the chosen configuration."""
    import datasets
    import yaml

    try:
        configs = datasets.get_dataset_config_names(str(folder))
        _check_config(choice, key, configs, datasets.get_dataset_default_config_name(str(folder)))
        builder: Any = datasets.load_dataset_builder(str(folder), choice.config, cache_dir=str(cache))
    except (OSError, ImportError, ValueError, TypeError, yaml.YAMLError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).replace(str(folder), choice.name).splitlines()[0]
        fix = "Download its files and name them by data.path=./FOLDER."
        fail(key, None, f"datasets finds no files of rows in {choice.text}: {reason}", fix)
    files: Mapping[str, Sequence[str]] = {str(name): paths for name, paths in builder.config.data_files.items()}
    return files


def _check_config(choice: Choice, key: str, configs: Sequence[str], default: str | None) -> None:
    listed = ", ".join(configs)
    if choice.config is None and default is None:
        fail(key, None, f"{choice.name} has several configurations: {listed}.", f"Write {choice.name}:{configs[0]}.")
    if choice.config is not None and choice.config not in configs:
        fail(key, None, f"{choice.name} has no configuration {choice.config}.", f"It has {listed}.")


def _chosen_split(choice: Choice, key: str, splits: Sequence[str]) -> str:
    listed = ", ".join(splits)
    if choice.split is not None:
        if choice.split not in splits:
            fail(key, None, f"{choice.name} has no split {choice.split}.", f"It has {listed}.")
        return choice.split
    if "train" not in splits and len(splits) > 1:
        example = f"{choice.name}:{choice.config or 'default'}:{splits[0]}"
        fail(key, None, f"{choice.text} has the splits {listed}, and none is train.", f"Write {example}.")
    return "train" if "train" in splits else splits[0]
