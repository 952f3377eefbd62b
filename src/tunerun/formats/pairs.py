"""Preference data: two token stores side by side, of which the rows of one number are answers to one prompt.

Layout of the folder, schema of `formats.tokens`:

    chosen/        the token store of the better answers, each after its prompt
    rejected/      the token store of the worse answers; row i begins with the same prompt tokens as row i of chosen/
    manifest.json  the layout `pairs`, and what both hold; written last

The prompt's tokens are those before the first trained one of a row, equal on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tunerun.errors import StageError
from tunerun.formats.tokens import Array, Manifest, TokenStore, read_manifest, write_manifest

CHOSEN, REJECTED = "chosen", "rejected"


@dataclass(frozen=True, slots=True)
class PairStore:
    """Preference data, mapped read-only."""

    manifest: Manifest
    """Of both sides together; rows are pairs."""
    chosen: TokenStore
    rejected: TokenStore

    @classmethod
    def open(cls, folder: Path) -> PairStore:
        """Maps preference data into memory.

        Raises:
            StageError: The folder is not a complete store of pairs of a known schema.
        """
        manifest = read_manifest(folder)
        if manifest.layout != "pairs":
            raise StageError(f"{folder}: holds rows for objective={manifest.objective}, not pairs.")
        chosen, rejected = TokenStore.open(folder / CHOSEN), TokenStore.open(folder / REJECTED)
        if not manifest.rows == len(chosen) == len(rejected):
            raise StageError(f"{folder}: {CHOSEN} and {REJECTED} differ in rows. Run the data stage again.")
        return cls(manifest, chosen, rejected)

    def __len__(self) -> int:
        return self.manifest.rows

    def lengths(self) -> Array:
        """Returns the tokens of each pair's longer side, shape [pairs], int64."""
        return np.maximum(self.chosen.lengths(), self.rejected.lengths())


def open_store(folder: Path) -> TokenStore | PairStore:
    """Maps a store of any layout into memory.

    Raises:
        StageError: The folder is not a complete store of a known schema.
    """
    return PairStore.open(folder) if read_manifest(folder).layout == "pairs" else TokenStore.open(folder)


def finish_pairs(folder: Path, chosen: Manifest, rejected: Manifest) -> Manifest:
    """Writes the manifest over two finished stores, `chosen/` and `rejected/` of a folder."""
    assert chosen.rows == rejected.rows, "every chosen row has its rejected one"
    manifest = replace(
        chosen,
        layout="pairs",
        tokens=chosen.tokens + rejected.tokens,
        trained_tokens=chosen.trained_tokens + rejected.trained_tokens,
    )
    write_manifest(folder, manifest)
    return manifest
