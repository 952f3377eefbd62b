"""Finds the base model: a local folder, a shipped model, or a download from a hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from tunerun import artifacts, hashes, paths
from tunerun.artifacts import Artifact
from tunerun.base_model import BaseModel, write_base, write_teacher
from tunerun.errors import Problem, StageError, UserError, require
from tunerun.formats.safetensors import INDEX, SINGLE
from tunerun.models import hub, internlm2
from tunerun.models.hub import HubFile, Repository
from tunerun.plan.steps import ModelStep
from tunerun.progress import Progress

CONFIG = "config.json"
# Any of these alone is a tokenizer.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_TEXT_FILES = (
    CONFIG,
    "generation_config.json",
    *TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE*",
    "NOTICE*",
)
_WEIGHT_FILES = ("model*.safetensors", INDEX)
_CODE_FILES = ("*.py",)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Bar(Protocol):
    """Shows how far a download is."""

    def __enter__(self) -> Self:
        """Starts showing."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Stops showing."""
        ...

    def advance(self, amount: int) -> None:
        """Adds bytes."""
        ...


MakeBar = Callable[[int], Bar]


def run(step: ModelStep, out: Path) -> list[Artifact]:
    """Finds or downloads the base model of a run and writes model.json; of a teacher, teacher.json.

    Raises:
        UserError: The folder named is no model.
        StageError: The model cannot be downloaded.
    """
    assert step.model.path is not None, "the checks ask for a model"
    base = fetch(
        step.model.path,
        hub_kind=step.model.hub,
        revision=step.model.revision,
        cache_dir=None if step.cache_dir is None else Path(step.cache_dir),
        weights=step.weights,
        remote_code=step.model.trust_remote_code,
    )
    if step.weights:
        _require_locked("lock.model_sha256", base, step.sha256)
    if step.weights and internlm2.is_internlm2(base.folder):
        base = replace(base, folder=_as_llama(base))
    write_base(out, base)
    made = [artifacts.describe(out, "model", artifacts.MODEL)]
    if step.teacher is not None:
        cache_dir = None if step.cache_dir is None else Path(step.cache_dir)
        teacher = fetch(step.teacher, hub_kind=step.model.hub, cache_dir=cache_dir)
        _require_locked("lock.teacher_sha256", teacher, step.teacher_sha256)
        write_teacher(out, teacher)
        made.append(artifacts.describe(out, "model", artifacts.TEACHER))
    return made


def _require_locked(key: str, found: BaseModel, wanted: str | None) -> None:
    if wanted in (None, found.sha256):
        return
    what = f"{found.path} has sha256 {found.sha256[:12]}.., and the lock asks for {wanted[:12]}.."
    fix = f"Get the model that the recipe was locked with, or unlock: '~{key}'"
    raise UserError(Problem(where=key, what=what, fix=fix))


def fetch(
    path: str,
    *,
    hub_kind: Literal["hf", "modelscope"] = "hf",
    revision: str | None = None,
    cache_dir: Path | None = None,
    weights: bool = True,
    remote_code: bool = False,
    make_bar: MakeBar | None = None,
) -> BaseModel:
    """Finds a model folder, downloading what is missing.

    Args:
        path: Local folder, `tunerun://` name, or hub id (`org/name`); a folder that exists is taken first.
        hub_kind: Where a hub id is looked up.
        revision: Commit, tag or branch on the hub.
        cache_dir: Folder for downloads; None takes the hub's own.
        weights: Whether weights are needed, or only the tokenizer and the config.
        remote_code: Whether Python files that come with the model are wanted.
        make_bar: Makes a bar for some bytes; None tells the runner.

    Returns:
        The model; its sha256 is over the files asked for.

    Raises:
        UserError: The local folder is missing or is no model.
        StageError: The model cannot be downloaded.
    """
    bar = make_bar or _runner_bar
    local = Path(paths.resolve_asset(path)).expanduser()
    commit = None
    if local.is_dir() or paths.looks_local(path):
        problems = find_problems(local, weights=weights)
        if problems:
            raise UserError([Problem(where="model.path", what=f"{path}: {what}") for what in problems])
        folder = local.resolve()
    elif hub_kind == "modelscope":
        folder = _from_modelscope(path, revision, cache_dir, weights, remote_code)
        commit = revision
    else:
        folder, commit = _from_hub(hub.repository(path, cache_dir), revision or "main", weights, remote_code, bar)
    digest = folder_sha256(folder, weights=weights, remote_code=remote_code)
    return BaseModel(folder=folder, path=path, revision=commit, sha256=digest)


def folder_sha256(folder: Path, *, weights: bool, remote_code: bool = False) -> str:
    """Returns the hash that `fetch` gives a model, over the files that it takes of the folder.

    Args:
        folder: Of the model.
        weights: As for `fetch`.
        remote_code: As for `fetch`.
    """
    files = [file for file in folder.iterdir() if file.is_file() and _matches(file.name, _wanted(weights, remote_code))]
    return hashes.folder_sha256(files, folder)


def _as_llama(base: BaseModel) -> Path:
    """Returns an InternLM2 written as Llama, once for the same files."""
    folder = paths.user_cache() / "models" / f"{base.sha256[:32]}-llama"
    if not folder.is_dir():
        print(f"writing {base.path} as Llama to {folder}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        internlm2.write_as_llama(base.folder, folder)
    return folder


def find_problems(folder: Path, *, weights: bool) -> list[str]:
    """Says what keeps a folder from being a model: one sentence each, none for a good one."""
    if not folder.is_dir():
        return ["there is no such folder."]
    problems = []
    if not (folder / CONFIG).is_file():
        problems.append(f"there is no {CONFIG}.")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        problems.append(f"there is no tokenizer ({', '.join(TOKENIZERS)}).")
    if weights:
        problems += _weight_problems(folder)
    return problems


def _weight_problems(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        try:
            shards = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            return [f"{INDEX} is damaged."]
        missing = [name for name in shards if not (folder / name).is_file()]
        return [f"{INDEX} names files that are missing: {', '.join(missing)}."] if missing else []
    if (folder / SINGLE).is_file():
        return []
    return [_no_safetensors([file.name for file in folder.iterdir()])]


def _no_safetensors(names: list[str]) -> str:
    pickles = sorted(name for name in names if _matches(name, _PICKLES))
    if pickles:
        return f"the weights are pickles ({pickles[0]}), which can run code when read. Save them as safetensors first."
    return f"there are no weights ({SINGLE} or {INDEX})."


def _from_hub(
    repository: Repository, revision: str, weights: bool, remote_code: bool, bar: MakeBar
) -> tuple[Path, str]:
    cached = repository.cached_commit(revision)
    complete = cached is not None and not find_problems(repository.snapshot(cached), weights=weights)
    if cached is not None and complete and (hub.is_offline() or hub.is_commit(revision)):
        return repository.snapshot(cached), cached
    if hub.is_offline():
        raise StageError(
            f"{repository.name} at {revision} is not in {repository.cache}, and HF_HUB_OFFLINE forbids to download it. "
            "Name a local folder with model.path=, or unset HF_HUB_OFFLINE."
        )
    try:
        return _download(repository, revision, _wanted(weights, remote_code), weights, bar)
    except hub.Unreachable as error:
        if cached is not None and complete:
            print(f"{error}; taking the copy in the cache, commit {cached}")
            return repository.snapshot(cached), cached
        raise StageError(
            f"{repository.name} is not in {repository.cache}, and {error}. Check the network, set HF_ENDPOINT to a "
            "mirror, or name a local folder with model.path="
        ) from error


def _download(
    repository: Repository, revision: str, wanted: tuple[str, ...], weights: bool, bar: MakeBar
) -> tuple[Path, str]:
    with hub.connect(repository) as client:
        listing = hub.list_files(client, repository, revision)
        # Only files beside config.json: what lies deeper is another format's (original/, onnx/).
        files = tuple(file for file in listing.files if "/" not in file.path and _matches(file.path, wanted))
        _check_listing(repository.name, listing.files, files, weights)
        hub.check_disk(repository, hub.missing_bytes(repository, files))
        with bar(sum(file.size for file in files)) as progress:
            for file in files:
                hub.download(client, repository, listing.commit, file, progress.advance)
    folder = repository.snapshot(listing.commit)
    problems = find_problems(folder, weights=weights)
    if problems:
        raise StageError(f"{repository.name}: {' '.join(problems)}")
    hub.remember(repository, revision, listing.commit)
    return folder, listing.commit


def _check_listing(name: str, listed: tuple[HubFile, ...], files: tuple[HubFile, ...], weights: bool) -> None:
    if weights and not any(file.path.endswith(".safetensors") for file in files):
        raise StageError(f"{name}: {_no_safetensors([file.path for file in listed])}")


def _from_modelscope(path: str, revision: str | None, cache_dir: Path | None, weights: bool, remote_code: bool) -> Path:
    download = require("modelscope.hub.snapshot_download", "hub").snapshot_download
    faults = require("modelscope.hub.errors", "hub")
    try:
        found = download(
            path, revision=revision, cache_dir=cache_dir, allow_patterns=list(_wanted(weights, remote_code))
        )
    except (faults.HubError, OSError, ValueError) as error:
        raise StageError(f"{path} cannot be downloaded from ModelScope: {error}") from error
    folder = Path(found)
    problems = find_problems(folder, weights=weights)
    if problems:
        raise StageError(f"{path}: {' '.join(problems)}")
    return folder


def _wanted(weights: bool, remote_code: bool) -> tuple[str, ...]:
    return (*_TEXT_FILES, *(_WEIGHT_FILES if weights else ()), *(_CODE_FILES if remote_code else ()))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _runner_bar(total: int) -> Progress:
    return Progress("download", total=total, unit="bytes")
