"""Writes what sprout is trained from: `python -m tunerun.sprout OUT`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunerun.artifacts import publish
from tunerun.sprout.base import write_base
from tunerun.sprout.corpus import draw_documents
from tunerun.sprout.dialogues import as_text, draw_eval_rows, draw_rows
from tunerun.sprout.tokenizer import train_tokenizer

_DOCUMENTS = 48_000
_DIALOGUES = 60_000
_CORPUS_SEED, _DIALOGUE_SEED, _EVAL_SEED = 1, 2, 3


def main() -> None:
    """Writes to the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tunerun.sprout", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write to")
    out: Path = parser.parse_args().out
    write_all(out, documents=_DOCUMENTS, dialogues=_DIALOGUES)
    print(f"wrote {out}")


def write_all(out: Path, *, documents: int, dialogues: int) -> None:
    """Writes corpus.jsonl, instruct.jsonl, instruct_eval.jsonl and base/; the same bytes for the same counts.

    Args:
        out: Folder; created where it is missing.
        documents: Rows of the corpus.
        dialogues: Rows of the instruction data.
    """
    texts = list(draw_documents(documents, _CORPUS_SEED))
    rows = list(draw_rows(dialogues, _DIALOGUE_SEED))
    _write_rows(out / "corpus.jsonl", ({"text": text} for text in texts))
    _write_rows(out / "instruct.jsonl", rows)
    _write_rows(out / "instruct_eval.jsonl", draw_eval_rows(_EVAL_SEED))
    write_base(out / "base", train_tokenizer([*texts, *map(as_text, rows)]))


def _write_rows(target: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with publish(target) as staging, staging.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


if __name__ == "__main__":
    main()
