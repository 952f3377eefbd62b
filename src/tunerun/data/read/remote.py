"""Reads a file of a hub as it comes, keeping no copy.

The rows, their lines and their values are those that a download would give. `datasets` streams too, but what it yields
lacks them: its CSV reader makes "007" a number, its JSON reader makes a day of "2024-01-31", and neither knows lines.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import quote

import httpx

from tunerun.data.rows import DataFile
from tunerun.errors import StageError
from tunerun.models import hub

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_TIMEOUT = httpx.Timeout(20.0, connect=3.0)
_BUFFER_BYTES = 1 << 18


@contextmanager
def open_remote(file: DataFile) -> Iterator[BinaryIO]:
    """Opens a file of a hub's data set for reading, also with seeks; a connection that breaks is taken up again.

    Args:
        file: With `streamed`; its name is `org/name/path`, its revision the commit.

    Raises:
        StageError: The hub does not answer or refuses; also while the file is read on.
    """
    owner, short, path = file.name.split("/", 2)
    repository = hub.repository(f"{owner}/{short}", None, "dataset")
    url = f"{repository.url}/resolve/{file.revision}/{quote(path)}"
    with hub.connect(repository) as client, _RemoteFile(client, url) as raw:
        yield cast(BinaryIO, io.BufferedReader(raw, _BUFFER_BYTES))


class _RemoteFile(io.RawIOBase):
    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client, self._url = client, url
        self._position = 0
        self._answer = ExitStack()
        self._chunks: Iterator[bytes] | None = None
        self._rest = memoryview(b"")
        try:
            self._size = self._open()
        except httpx.TransportError as error:
            reason = hub.reason(error)
            raise StageError(f"{url}: cannot be reached ({reason}). Check the network and HF_ENDPOINT.") from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        if start != self._position:
            self._drop()
            self._position = start
        return start

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self._position >= self._size:
            return 0
        target = memoryview(buffer).cast("B")
        if not self._rest:
            self._rest = memoryview(self._next())
        size = min(len(target), len(self._rest))
        target[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        self._position += size
        return size

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        self._answer.close()
        self._chunks, self._rest = None, memoryview(b"")

    def _next(self) -> bytes:
        """Returns the bytes that follow, asking for them again where the connection broke."""
        for attempt in range(1, hub.ATTEMPTS + 1):
            try:
                if self._chunks is None:
                    self._open()
                chunk = next(filter(None, self._chunks or ()), None)
                if chunk is not None:
                    return chunk
                reason = "it ended early"
            except httpx.TransportError as error:
                reason = hub.reason(error)
            self._drop()
            if attempt < hub.ATTEMPTS:
                time.sleep(hub.WAIT_SECONDS * attempt)
        raise StageError(f"{self._url}: the connection broke {hub.ATTEMPTS} times ({reason}). Run it again later.")

    def _open(self) -> int:
        """Asks for the bytes from the present position on; returns how long the whole file is.

        Raises:
            httpx.TransportError: The hub does not answer, or the connection broke.
            StageError: The hub refuses.
        """
        headers = {"accept-encoding": "identity"}
        if self._position:
            headers["range"] = f"bytes={self._position}-"
        answer = self._answer.enter_context(self._client.stream("GET", self._url, headers=headers, timeout=_TIMEOUT))
        if answer.is_error:
            hint = (
                " Set HF_TOKEN to a token of an account that may read it." if answer.status_code in (401, 403) else ""
            )
            raise StageError(f"{self._url}: HTTP {answer.status_code}.{hint}")
        chunks = answer.iter_raw()
        if self._position and answer.status_code != HTTPStatus.PARTIAL_CONTENT:
            chunks = _skipped(chunks, self._position)
        self._chunks = chunks
        if "content-length" not in answer.headers:
            raise StageError(f"{self._url}: the answer does not say how long the file is. Set data.streaming=false.")
        return self._position + int(answer.headers["content-length"])


def _skipped(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Leaves out the first bytes: the server sent everything again."""
    for chunk in chunks:
        if size < len(chunk):
            yield chunk[size:]
        size = max(0, size - len(chunk))
