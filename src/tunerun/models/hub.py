"""Downloads models and data sets from a Hugging Face hub or a mirror into the cache that all its tools share.

Speaks the hub's file API over plain HTTPS: `/api/models/<repo>/revision/<revision>` lists the files,
`/<repo>/resolve/<commit>/<file>` gives one, with Range; data sets are under `/api/datasets/` and `/datasets/`.
huggingface_hub supplies the cache folder, the endpoint and the token; it does not download, because it starts a file
from zero after an interruption and its Xet transfer ignores mirrors. The cache layout (blobs/, snapshots/, refs/) is
documented in huggingface_hub's "Understand caching".
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import quote

import httpx

from tunerun import artifacts
from tunerun.errors import StageError

# Connecting and an answer to the listing: an unreachable hub is told within five seconds.
_LISTING_TIMEOUT = httpx.Timeout(4.0, connect=3.0)
_DOWNLOAD_TIMEOUT = httpx.Timeout(20.0, connect=3.0)
ATTEMPTS = 4
WAIT_SECONDS = 1.0
_CHUNK_BYTES = 1 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")
_KINDS = {"model": "model", "dataset": "data set"}
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

Advance = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class HubFile:
    """One file of a repository."""

    path: str
    """Relative, with forward slashes."""
    size: int
    blob: str
    """Name in blobs/: the sha256 of a large file, git's sha1 of a small one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """A repository at one commit."""

    commit: str
    files: tuple[HubFile, ...]


class Unreachable(Exception):  # noqa: N818
    """No answer from the hub; a cached copy may still do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A repository and its place in the cache."""

    name: str
    endpoint: str
    cache: Path
    """The hub cache: holds `models--<org>--<name>` and `datasets--<org>--<name>` folders."""
    token: str | None
    kind: Literal["model", "dataset"] = "model"

    @property
    def folder(self) -> Path:
        """The repository's folder in the cache."""
        return self.cache / f"{self.kind}s--{self.name.replace('/', '--')}"

    @property
    def url(self) -> str:
        """Where people and downloads find it."""
        return f"{self.endpoint}/{self.name}" if self.kind == "model" else f"{self.endpoint}/datasets/{self.name}"

    def snapshot(self, commit: str) -> Path:
        """Returns where the files of a commit are."""
        return self.folder / "snapshots" / commit

    def cached_commit(self, revision: str) -> str | None:
        """Returns the commit that a revision meant when it was last looked up."""
        if is_commit(revision):
            return revision
        reference = self.folder / "refs" / revision
        return reference.read_text(encoding="utf-8").strip() if reference.is_file() else None


def repository(name: str, cache_dir: Path | None, kind: Literal["model", "dataset"] = "model") -> Repository:
    """Returns a repository as the environment says: HF_HOME, HF_ENDPOINT and HF_TOKEN.

    Args:
        name: Hub id.
        cache_dir: Folder for downloads; None takes the hub's own.
        kind: What is in it.
    """
    # Reads the variables when it is first imported.
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE) if cache_dir is None else cache_dir
    return Repository(
        name=name, endpoint=constants.ENDPOINT, cache=cache.expanduser().absolute(), token=get_token(), kind=kind
    )


def is_offline() -> bool:
    """Says whether HF_HUB_OFFLINE forbids to ask a hub."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def is_commit(revision: str) -> bool:
    """Says whether a revision is a full commit, which never changes its meaning."""
    return _COMMIT.fullmatch(revision) is not None


@contextmanager
def connect(repository: Repository) -> Iterator[httpx.Client]:
    """Opens a client that sends the token to the hub's host only (httpx drops it on a redirect to another)."""
    headers = {"user-agent": "tunerun"}
    if repository.token is not None:
        headers["authorization"] = f"Bearer {repository.token}"
    with httpx.Client(headers=headers, follow_redirects=True) as client:
        yield client


def list_files(client: httpx.Client, repository: Repository, revision: str) -> Listing:
    """Asks the hub what a revision is and which files it has.

    Raises:
        Unreachable: The hub does not answer, or answers with a fault of its own.
        StageError: There is no such repository or revision, or it may not be read.
    """
    url = f"{repository.endpoint}/api/{repository.kind}s/{repository.name}/revision/{quote(revision, safe='')}"
    try:
        answer = client.get(url, params={"blobs": "true"}, timeout=_LISTING_TIMEOUT)
    except httpx.HTTPError as error:
        raise Unreachable(f"{repository.endpoint} cannot be reached ({reason(error)})") from error
    if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise Unreachable(f"{repository.endpoint} answers with HTTP {answer.status_code}")
    _refuse(answer, repository, revision)
    try:
        data = answer.json()
        if not is_commit(data["sha"]):
            raise ValueError(data["sha"])
        return Listing(commit=data["sha"], files=tuple(_file(item) for item in data["siblings"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StageError(f"{url}: the answer is not that of a hub. Is HF_ENDPOINT right?") from error


def download(client: httpx.Client, repository: Repository, commit: str, file: HubFile, advance: Advance) -> None:
    """Puts one file into the cache, going on where an earlier download stopped.

    Args:
        client: From `connect`.
        repository: Where the file is and goes.
        commit: Of the file.
        file: What to download; nothing is done when its blob is there.
        advance: Told the bytes that have arrived, those of an earlier try at once.

    Raises:
        StageError: The connection breaks time and again, the hub refuses, or the bytes are not those announced.
        OSError: The disk is full.
    """
    blob = repository.folder / "blobs" / file.blob
    blob.parent.mkdir(parents=True, exist_ok=True)
    url = f"{repository.url}/resolve/{commit}/{quote(file.path)}"
    if blob.is_file():
        advance(file.size)
    else:
        with _partial(blob) as stream:
            # Another process may have finished it while this one waited for the lock.
            if not blob.is_file():
                _fill(client, url, _Incoming(stream, file, advance), file.size)
                Path(stream.name).replace(blob)
    _link(blob, repository.snapshot(commit) / file.path)


def remember(repository: Repository, revision: str, commit: str) -> None:
    """Notes which commit a branch or tag means now, so that it is found offline."""
    if not is_commit(revision):
        artifacts.write_text(repository.folder / "refs" / revision, commit)


def missing_bytes(repository: Repository, files: tuple[HubFile, ...]) -> int:
    """Returns how much is still to be downloaded."""
    total = 0
    for file in files:
        blob = repository.folder / "blobs" / file.blob
        if not blob.is_file():
            partial = _partial_path(blob)
            total += file.size - (partial.stat().st_size if partial.is_file() else 0)
    return total


def check_disk(repository: Repository, needed_bytes: int) -> None:
    """Refuses a download that the disk of the cache cannot hold.

    Raises:
        StageError: Too little is free.
    """
    repository.cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(repository.cache).free
    if needed_bytes > free:
        raise StageError(
            f"{repository.name} needs {needed_bytes / 1e9:.1f} GB, and {repository.cache} has {free / 1e9:.1f} GB "
            "free. Free some, or name a larger disk with env.cache_dir=..."
        )


def _refuse(answer: httpx.Response, repository: Repository, revision: str) -> None:
    code = answer.headers.get("x-error-code", "")
    if code == "RevisionNotFound":
        raise StageError(f"{repository.name} has no revision {revision!r} on {repository.endpoint}.")
    if answer.status_code == HTTPStatus.FORBIDDEN or code == "GatedRepo":
        raise StageError(
            f"{repository.name} is gated: accept its terms on {repository.url}, "
            "then set HF_TOKEN to a token of that account."
        )
    if answer.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND):
        raise StageError(
            f"there is no {_KINDS[repository.kind]} {repository.name} on {repository.endpoint}, or it is private and "
            "HF_TOKEN does not open it. A local folder is written with a slash in front: ./folder or /folder."
        )
    if answer.is_error:
        raise StageError(f"{answer.request.url}: HTTP {answer.status_code}")


def _file(item: dict[str, Any]) -> HubFile:
    large = "lfs" in item and item["lfs"] is not None
    blob = item["lfs"]["sha256"] if large else item["blobId"]
    # It becomes a file name.
    if _HASH.fullmatch(blob) is None:
        raise ValueError(blob)
    return HubFile(path=item["rfilename"], size=item["lfs"]["size"] if large else item["size"], blob=blob)


class _Incoming:
    """A file that is arriving: its stream, and the digest of what is in it."""

    def __init__(self, stream: BinaryIO, file: HubFile, advance: Advance) -> None:
        self.stream, self._file, self._advance = stream, file, advance
        self._digest = _digest(file)
        stream.seek(0)
        while chunk := stream.read(_CHUNK_BYTES):
            self._digest.update(chunk)
        advance(self.size)

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.stream.tell()

    def append(self, chunk: bytes) -> None:
        """Takes the next bytes."""
        self.stream.write(chunk)
        self._digest.update(chunk)
        self._advance(len(chunk))

    def restart(self) -> None:
        """Forgets what has arrived."""
        self._advance(-self.size)
        self.stream.seek(0)
        self.stream.truncate()
        self._digest = _digest(self._file)

    def is_complete(self) -> bool:
        """Says whether all bytes are there, and are the ones announced."""
        return self.size == self._file.size and bool(self._digest.hexdigest() == self._file.blob)


def _fill(client: httpx.Client, url: str, incoming: _Incoming, size: int) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _receive(client, url, incoming, size)
            break
        except httpx.TransportError as error:
            if attempt == ATTEMPTS:
                what = f"{url}: the connection broke {ATTEMPTS} times ({reason(error)})."
                raise StageError(f"{what} Run it again to go on from {incoming.size / 1e6:.0f} MB.") from error
            time.sleep(WAIT_SECONDS * attempt)
    if not incoming.is_complete():
        # What is there cannot be gone on from.
        incoming.restart()
        raise StageError(f"{url}: what arrived is not the file that the hub announced. Run it again.")
    incoming.stream.flush()


def _receive(client: httpx.Client, url: str, incoming: _Incoming, size: int) -> None:
    start = incoming.size
    if start >= size > 0:
        return
    headers = {"accept-encoding": "identity"} | ({"range": f"bytes={start}-"} if start else {})
    with client.stream("GET", url, headers=headers, timeout=_DOWNLOAD_TIMEOUT) as answer:
        if answer.is_error:
            raise StageError(f"{url}: HTTP {answer.status_code}")
        if start and answer.status_code != HTTPStatus.PARTIAL_CONTENT:
            # The server sends everything again.
            incoming.restart()
        for chunk in answer.iter_raw():
            incoming.append(chunk)


def _digest(file: HubFile) -> Any:
    if len(file.blob) == 64:
        return hashlib.sha256()
    # Git names a file by the sha1 of a header and its bytes.
    return hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)


def _partial_path(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.tunerun-partial")


@contextmanager
def _partial(blob: Path) -> Iterator[BinaryIO]:
    """Opens what has arrived of a blob, for one process at a time."""
    with _partial_path(blob).open("a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield stream


def _link(blob: Path, target: Path) -> None:
    if target.is_symlink() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    up = "/".join(".." for _ in target.parent.relative_to(blob.parent.parent).parts)
    target.symlink_to(f"{up}/blobs/{blob.name}")


def reason(error: httpx.HTTPError) -> str:
    """Says why a hub could not be reached; some errors have no text."""
    return str(error) or type(error).__name__
