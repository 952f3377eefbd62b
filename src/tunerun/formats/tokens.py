"""The token store: tokenised rows as flat little-endian arrays that are mapped into memory, never loaded.

Layout of the folder, schema 2:

    tokens.u32     token ids of all rows, one after the other
    trained.u8     for each token 1 where it is a target of the loss, else 0
    segments.i32   for each token the number of its sample; positions restart where it changes
    offsets.i64    where each row starts in the arrays above; one more than there are rows
    labels.u8      for each row 1 where its answer is desirable, else 0; only where the manifest's layout is `labelled`
    manifest.json  what the rows are; written last, so a folder without it is incomplete

Preference data (layout `pairs`) are two stores, `chosen/` and `rejected/`, beside a manifest of both: `formats.pairs`.
Schema 1 had the layout `rows` only, and did not name it.
"""

from __future__ import annotations

import mmap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import numpy.typing as npt

from tunerun import artifacts
from tunerun.errors import StageError

SCHEMA = 2
MANIFEST = "manifest.json"
TOKENS, TRAINED, SEGMENTS, OFFSETS = "tokens.u32", "trained.u8", "segments.i32", "offsets.i64"
LABELS = "labels.u8"

Layout = Literal["rows", "labelled", "pairs"]
"""Rows to imitate, rows with a label each, or pairs of a chosen and a rejected row."""

_DTYPES: dict[str, np.dtype[Any]] = {
    TOKENS: np.dtype("<u4"),
    TRAINED: np.dtype("u1"),
    SEGMENTS: np.dtype("<i4"),
    OFFSETS: np.dtype("<i8"),
    LABELS: np.dtype("u1"),
}

Array = npt.NDArray[Any]

# Rows are joined and written once they hold so many tokens together.
_WAITING_TOKENS = 1 << 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a token store holds."""

    layout: Layout = "rows"
    """What a row is; of `pairs` the counts below are of both sides together, but rows and samples are pairs."""
    objective: str
    """One of the objective kinds, such as `sft`."""
    tokenizer_sha256: str
    """Of tokenizer.json."""
    template_sha256: str | None
    """Of everything that decides a rendering; None for plain text."""
    max_length: int
    """Longest row allowed, in tokens."""
    packed: bool
    """Whether a row holds several samples."""
    rows: int
    samples: int
    tokens: int
    trained_tokens: int
    """Number of tokens that are targets of the loss."""


def read_manifest(folder: Path) -> Manifest:
    """Reads what a store holds, of any layout.

    Raises:
        StageError: The folder is not a complete store.
        UserError: Its manifest is damaged, or was written by a newer tunerun.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise StageError(f"{folder}: no complete token store ({MANIFEST} is missing). Run the data stage again.")
    _, data = artifacts.read_versioned(path, SCHEMA)
    return Manifest(**data)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes what a store holds, which makes it complete."""
    artifacts.write_json(folder / MANIFEST, {"schema": SCHEMA, **asdict(manifest)})


@dataclass(frozen=True, slots=True)
class TokenStore:
    """A token store, mapped read-only."""

    manifest: Manifest
    tokens: Array
    """Shape [tokens], uint32."""
    trained: Array
    """Shape [tokens], uint8."""
    segments: Array
    """Shape [tokens], int32."""
    offsets: Array
    """Shape [rows + 1], int64."""
    labels: Array | None = None
    """Shape [rows], uint8, of the layout `labelled`; else None."""
    _maps: tuple[mmap.mmap, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """Maps a store into memory.

        Raises:
            StageError: The folder is not a complete store of a known schema, or holds pairs.
        """
        manifest = read_manifest(folder)
        if manifest.layout == "pairs":
            raise StageError(f"{folder}: holds pairs of rows for objective={manifest.objective}, not single rows.")
        sizes = {TOKENS: manifest.tokens, TRAINED: manifest.tokens, SEGMENTS: manifest.tokens}
        sizes[OFFSETS] = manifest.rows + 1
        labelled = manifest.layout == "labelled"
        if labelled:
            sizes[LABELS] = manifest.rows
        maps = {name: _map(folder / name, size * _DTYPES[name].itemsize) for name, size in sizes.items()}
        # Not `np.memmap`, whose slices cost several times as much.
        arrays = {name: np.frombuffer(mapped, _DTYPES[name]) for name, mapped in maps.items()}
        labels = arrays[LABELS] if labelled else None
        mapped = tuple(found for found in maps.values() if isinstance(found, mmap.mmap))
        return cls(manifest, arrays[TOKENS], arrays[TRAINED], arrays[SEGMENTS], arrays[OFFSETS], labels, mapped)

    def __len__(self) -> int:
        return self.manifest.rows

    def row(self, index: int) -> tuple[Array, Array, Array]:
        """Returns tokens, trained flags and segments of a row, each of shape [tokens of the row]."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.tokens[part], self.trained[part], self.segments[part]

    def let_go(self) -> None:
        """Gives back the memory of what was read so far; it is mapped again when it is read again."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    def lengths(self) -> Array:
        """Returns the number of tokens of each row, shape [rows], int64."""
        return np.diff(self.offsets)


class TokenWriter:
    """Writes a token store row by row; use as a context manager, and `finish` at the end."""

    def __init__(self, folder: Path, *, labelled: bool = False) -> None:
        """Creates the folder and its files; the caller publishes the folder when all is well."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        names = [name for name in _DTYPES if labelled or name != LABELS]
        self._files: dict[str, BinaryIO] = {name: (folder / name).open("wb") for name in names}
        self._write(OFFSETS, np.zeros(1))
        self._waiting: list[tuple[Array, Array]] = []
        self._written = 0
        self._offsets: list[int] = []
        self._labels: list[bool] = []
        self.rows = self.samples = self.tokens = self.trained_tokens = 0

    def add(self, *samples: tuple[Array, Array], label: bool | None = None) -> None:
        """Appends one row.

        Args:
            samples: That it is made of, each the tokens and the trained flags, shape [tokens of the sample].
            label: Whether its answer is desirable; of a labelled store only.
        """
        assert (label is not None) == (LABELS in self._files), "every row of a labelled store has a label"
        for sample in samples:
            self.tokens += len(sample[0])
        self.samples += len(samples)
        self.rows += 1
        self._waiting += samples
        self._offsets.append(self.tokens)
        if label is not None:
            self._labels.append(label)
        # Rows are short: hundreds of them make one write.
        if self.tokens - self._written >= _WAITING_TOKENS:
            self._flush()

    def finish(
        self, *, objective: str, tokenizer_sha256: str, template_sha256: str | None, max_length: int, packed: bool
    ) -> Manifest:
        """Closes the arrays and writes the manifest."""
        self._close()
        manifest = Manifest(
            layout="labelled" if LABELS in self._files else "rows",
            objective=objective,
            tokenizer_sha256=tokenizer_sha256,
            template_sha256=template_sha256,
            max_length=max_length,
            packed=packed,
            rows=self.rows,
            samples=self.samples,
            tokens=self.tokens,
            trained_tokens=self.trained_tokens,
        )
        write_manifest(self._folder, manifest)
        return manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._flush()
        for file in self._files.values():
            file.close()

    def _flush(self) -> None:
        if not self._offsets:
            return
        sizes = [len(tokens) for tokens, _ in self._waiting]
        trained = np.concatenate([trained for _, trained in self._waiting])
        self._write(TOKENS, np.concatenate([tokens for tokens, _ in self._waiting]))
        self._write(TRAINED, trained)
        self._write(SEGMENTS, np.repeat(np.arange(self.samples - len(sizes), self.samples), sizes))
        self._write(OFFSETS, np.array(self._offsets))
        if self._labels:
            self._write(LABELS, np.array(self._labels))
        self.trained_tokens += int(np.count_nonzero(trained))
        self._written = self.tokens
        for waiting in (self._waiting, self._offsets, self._labels):
            waiting.clear()

    def _write(self, name: str, values: Array) -> None:
        self._files[name].write(values.astype(_DTYPES[name], copy=False).tobytes())


def _map(path: Path, size_bytes: int) -> mmap.mmap | bytes:
    if not path.is_file() or path.stat().st_size != size_bytes:
        raise StageError(f"{path}: its size is not what the manifest says. Run the data stage again.")
    if size_bytes == 0:
        return b""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
