"""Runs llama.cpp's converter or its quantiser, so that a crash ends this process and no other.

`convert SOURCE PRE_TOKENIZER MODEL FILE TYPE NAME` or `quantise FILE TARGET NUMBER THREADS`.
"""

from __future__ import annotations

import ctypes
import importlib
import runpy
import sys
from pathlib import Path
from typing import Any


def convert(source: Path, pre_tokenizer: str, *arguments: str) -> None:
    """Runs convert_hf_to_gguf.py, which brings a `gguf` package of its own.

    Args:
        source: llama.cpp's.
        pre_tokenizer: Taken for a vocabulary that the converter does not know; empty to let it refuse.
        arguments: Model folder, the file, its type (`f32`, `f16` or `bf16`) and the name shown to users.
    """
    sys.path[:0] = [str(source / "gguf-py"), str(source)]
    text_model: Any = importlib.import_module("conversion.base").TextModel
    recognise = text_model.get_vocab_base_pre

    def recognise_or_name(self: Any, tokenizer: Any) -> str:
        try:
            known: str = recognise(self, tokenizer)
        except NotImplementedError:
            if not pre_tokenizer:
                raise
            return pre_tokenizer
        return known

    text_model.get_vocab_base_pre = recognise_or_name
    model, target, kind, name = arguments
    sys.argv = ["convert_hf_to_gguf.py", model, "--outfile", target, "--outtype", kind, "--model-name", name]
    runpy.run_path(str(source / "convert_hf_to_gguf.py"), run_name="__main__")


def quantise(source: str, target: str, number: int, threads: int) -> int:
    """Runs `llama_model_quantize`; returns its code, 0 for success."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = number, threads
    code: int = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters))
    return code


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]), *sys.argv[3:])
    else:
        sys.exit(quantise(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
