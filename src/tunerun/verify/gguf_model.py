"""A GGUF file as llama.cpp sees it: its tokenizer, its chat template, its logits."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunerun.errors import StageError, UserError, require
from tunerun.formats.gguf_header import CHAT_TEMPLATE, read_gguf_header


def open_gguf(path: Path, *, vocabulary_only: bool, context: int = 512, threads: int = 1) -> Any:
    """Opens a GGUF file with llama-cpp-python.

    Args:
        path: The file.
        vocabulary_only: Whether only metadata and tokenizer are read.
        context: Most tokens of a text.
        threads: CPU threads.

    Raises:
        MissingExtra: llama-cpp-python is not installed.
        StageError: The file is broken, or llama.cpp refuses it.
    """
    llama_cpp: Any = require("llama_cpp", "gguf")
    try:
        read_gguf_header(path, lists=False)
    except UserError as error:
        raise StageError(str(error)) from error
    # llama-cpp-python prints llama.cpp's warnings whatever `verbose` says; they matter only when opening fails.
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return llama_cpp.Llama(**_arguments(llama_cpp, path, vocabulary_only, context, threads))
    except ValueError as error:
        raise StageError(f"{path}: llama.cpp cannot open it: {error}\n{said.getvalue()}") from error


def _arguments(llama_cpp: Any, path: Path, vocabulary_only: bool, context: int, threads: int) -> dict[str, Any]:
    return {
        "model_path": str(path),
        "vocab_only": vocabulary_only,
        "logits_all": not vocabulary_only,
        "n_ctx": context,
        "n_batch": context,
        "n_ubatch": context,
        "n_threads": threads,
        "n_threads_batch": threads,
        # Logits are compared: the cache must not round what the reference does not.
        "type_k": llama_cpp.GGML_TYPE_F32,
        "type_v": llama_cpp.GGML_TYPE_F32,
        "verbose": False,
    }


def tokenize(model: Any, text: str, *, framed: bool = False) -> list[int]:
    """Returns llama.cpp's token ids of a text in which special tokens are written out.

    Args:
        model: From `open_gguf`.
        text: The text.
        framed: Whether the file's beginning-of-sequence token is put before it, if it says so.
    """
    ids: list[int] = model.tokenize(text.encode(), add_bos=framed, special=True)
    return ids


def chat_template(model: Any) -> str | None:
    """Returns the chat template in the file's metadata."""
    metadata: dict[str, str] = model.metadata
    return metadata.get(CHAT_TEMPLATE)


def logits(model: Any, texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Returns llama.cpp's float32 logits at every place of some texts: (tokens, vocabulary) each."""
    found = []
    for ids in texts:
        model.reset()
        model.eval(list(ids))
        found.append(torch.from_numpy(model.scores[: len(ids)].copy()))
    return found
