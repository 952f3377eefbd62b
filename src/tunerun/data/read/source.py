"""Opens data files as bytes, unpacks them, and refuses what is not text, before anything is parsed."""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, cast

from tunerun.errors import Problem, UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_LINE_BYTES = 64 << 20
"""Longest line, CSV record or JSON element that is read; more is a broken file, and would fill the memory."""

HEAD_BYTES = 1 << 16

UTF8_MARK = b"\xef\xbb\xbf"

OLD_MAC = "lines end by CR alone, as on old Macs."
OLD_MAC_FIX = "Save it with LF or CRLF line ends."

FOREIGN_TABLES = {
    ".xls": "Save it as .xlsx or CSV.",
    ".xlsb": "Save it as .xlsx or CSV.",
    ".ods": "Save it as .xlsx or CSV.",
    ".numbers": "Export it as .xlsx or CSV.",
    ".docx": "Save its table as .xlsx or CSV.",
    ".zip": "Unpack it.",
    ".pkl": "Write its rows as JSON lines; pickles can run code and are not opened.",
}
"""What to do with tables of other kinds."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_BUFFER_BYTES = 1 << 18

# First bytes of files that people take for text.
_FOREIGN = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "Save it as UTF-8."),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "Save it as UTF-8."),
    (b"\xff\xfe", "UTF-16 text", "Save it as UTF-8."),
    (b"\xfe\xff", "UTF-16 text", "Save it as UTF-8."),
    (b"PK\x03\x04", "a zip archive or an Office file", "Unpack it, or name a workbook .xlsx."),
    (b"PK\x05\x06", "an empty zip archive", ""),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file", "Save it as .xlsx or CSV."),
    (b"PAR1", "a Parquet file", "Name it .parquet."),
    (b"ARROW1", "an Arrow file", "Name it .arrow."),
    (b"BZh", "compressed by bzip2", "Unpack it, or compress it by gzip or zstd."),
    (b"\xfd7zXZ\x00", "compressed by xz", "Unpack it, or compress it by gzip or zstd."),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "Unpack it."),
    (b"Rar!\x1a\x07", "a RAR archive", "Unpack it."),
    (_GZIP, "compressed twice", "Unpack it once."),
    (_ZSTD, "compressed twice", "Unpack it once."),
    (b"%PDF", "a PDF file", "Extract its text."),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture", ""),
    (b"\xff\xd8\xff", "a JPEG picture", ""),
    (b"GIF8", "a GIF picture", ""),
    (b"\x7fELF", "a program", ""),
    (b"SQLite format 3\x00", "an SQLite database", "Export the table as CSV."),
    (b"\x80\x04\x95", "a Python pickle", "Write its rows as JSON lines; pickles can run code and are not opened."),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "Fetch it by git lfs pull."),
    (b"<!DOCTYPE html", "a web page", "Was a login or error page downloaded instead of the data?"),
    (b"<html", "a web page", "Was a login or error page downloaded instead of the data?"),
)


def fail(name: str, line: int | None, what: str, fix: str = "") -> NoReturn:
    """Raises the error of a file that cannot be read on.

    Args:
        name: The file.
        line: The line, counted from 1, or None when it is about the file.
        what: What is wrong, one sentence.
        fix: What to do.
    """
    where = name if line is None else f"{name}:{line}"
    raise UserError(Problem(where=where, what=what, fix=fix))


def check_file(path: Path, name: str) -> None:
    """Refuses what is no ordinary file, without opening it: a pipe would wait for ever.

    Raises:
        UserError: It is a folder, a pipe, a socket or a device, does not exist, or cannot be reached.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        link = path.is_symlink()
        fail(name, None, "is a link to a file that does not exist." if link else "does not exist.")
    except OSError as error:
        fail(name, None, f"cannot be read: {error.strerror or error}.")
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        fail(name, None, f"is not a file but a {kinds.get(stat.S_IFMT(mode), 'device')}.")
    if not os.access(path, os.R_OK):
        fail(name, None, f"cannot be read: {os.strerror(errno.EACCES)}.")


@contextmanager
def text_stream(raw: BinaryIO, name: str) -> Iterator[tuple[BinaryIO, bytes]]:
    """Unpacks a text file, compressed by gzip or zstd or not; yields it after its UTF-8 mark, and its first bytes.

    The file is read once from start to end; nothing goes back.

    Args:
        raw: The file, at its start.
        name: How messages name it.

    Raises:
        UserError: The file cannot be read, is empty, or is not UTF-8 text; also while it is read on.
    """
    with reading(name), _unpacked(raw) as packed:
        head = _read_fully(packed, HEAD_BYTES)
        _check_head(head, name)
        head = head.removeprefix(UTF8_MARK)
        yield cast(BinaryIO, io.BufferedReader(_Rejoined(head, packed), _BUFFER_BYTES)), head


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns the faults of reading and unpacking into the user's error."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fail(name, None, f"the gzip file is damaged or cut off: {error}.")
    except _ZstdFault as error:
        fail(name, None, f"the zst file is damaged or cut off: {error}.")
    except OSError as error:
        fail(name, None, f"cannot be read: {error.strerror or error}.")


def lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Yields each line with its number, counted from 1, with bounded memory.

    Raises:
        UserError: A line is longer than `MAX_LINE_BYTES`, or lines end as on old Macs.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            fail(name, number, f"the line is longer than {MAX_LINE_BYTES >> 20} MiB.", "Write one row per line.")
        if number == 1 and not line.endswith(b"\n") and b"\r" in line.rstrip():
            fail(name, 1, OLD_MAC, OLD_MAC_FIX)
        yield number, line


def decode_fault(error: UnicodeDecodeError) -> str:
    """Describes bytes that are not UTF-8."""
    return f"byte 0x{error.object[error.start]:02x} at position {error.start + 1} is not UTF-8."


class _ZstdFault(Exception):  # noqa: N818
    pass


class _Zstd(io.RawIOBase):
    """What a zst file holds, its frames one after the other.

    pyarrow unpacks it: it tells a file that is cut off, and refuses frames that need more than 128 MiB of memory.
    """

    def __init__(self, raw: BinaryIO) -> None:
        import pyarrow

        self._stream: Any = pyarrow.CompressedInputStream(raw, "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except OSError as error:
            # Of a read that failed, not of zstd: it has a number.
            if error.errno is not None:
                raise
            raise _ZstdFault(str(error)) from error


class _Rejoined(io.RawIOBase):
    """A stream whose first bytes were read already, put back in front."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = memoryview(head), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if not self._head:
            return cast(Any, self._rest).readinto(buffer) or 0
        target = memoryview(buffer).cast("B")
        size = min(len(target), len(self._head))
        target[:size] = self._head[:size]
        self._head = self._head[size:]
        return size


@contextmanager
def _unpacked(raw: BinaryIO) -> Iterator[BinaryIO]:
    start = _read_fully(raw, len(_ZSTD))
    whole = cast(BinaryIO, io.BufferedReader(_Rejoined(start, raw), _BUFFER_BYTES))
    if start.startswith(_GZIP):
        with gzip.GzipFile(fileobj=whole) as file:
            yield cast(BinaryIO, file)
    elif start == _ZSTD:
        yield cast(BinaryIO, _Zstd(whole))
    else:
        yield whole


def _read_fully(file: BinaryIO, size: int) -> bytes:
    """Reads until there are so many bytes or the end; one read may give fewer."""
    parts: list[bytes] = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _check_head(head: bytes, name: str) -> None:
    if not head.removeprefix(UTF8_MARK).strip():
        if len(head) < HEAD_BYTES:
            fail(name, None, "is empty.")
        fail(name, None, f"starts with {HEAD_BYTES} blank bytes.")
    for magic, kind, fix in _FOREIGN:
        if head.startswith(magic):
            fail(name, None, f"is {kind}, not UTF-8 text.", fix)
    zero = head.find(b"\x00")
    if zero >= 0:
        line = head.count(b"\n", 0, zero) + 1
        fail(name, line, "holds a NUL byte: it is binary, or UTF-16 without a mark.", "Save it as UTF-8 text.")
