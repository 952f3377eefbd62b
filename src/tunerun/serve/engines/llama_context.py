"""A GGUF file in llama.cpp, through llama-cpp-python's binding of its C functions.

Each sequence has key-value cells of its own (`kv_unified` off) and is decoded in a batch of its own: then its logits
are the same bits as when it is alone. Cells shared by all sequences, or a batch of several, change them.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tunerun.errors import MissingExtra, StageError
from tunerun.formats.gguf_header import read_gguf_header

if TYPE_CHECKING:
    import numpy.typing as npt

BATCH_TOKENS = 512
"""Most tokens decoded at once."""

_PACKAGE = "llama_cpp"
_ERROR_LEVEL = 4
"""GGML_LOG_LEVEL_ERROR (ggml.h)."""
_PIECE_BYTES = 64


class LlamaContext:
    """A loaded file with room for several sequences, numbered from 0."""

    def __init__(self, path: Path, *, context_tokens: int | None, threads: int, device: str) -> None:
        """Loads the file.

        Args:
            path: The GGUF file.
            context_tokens: Longest sequence; None takes the model's own.
            threads: CPU threads.
            device: `cpu` or `cuda`.

        Raises:
            UserError: It is not a GGUF file, or a broken one.
            StageError: llama.cpp cannot load it.
            MissingExtra: llama-cpp-python is not installed.
        """
        read_gguf_header(path, lists=False)
        self.api: Any = llama_module("llama_cpp")
        self._path, self._threads = path, threads
        self.api.llama_log_set(_error_log(self.api), ctypes.c_void_p())
        self.api.llama_backend_init()
        parameters = self.api.llama_model_default_params()
        parameters.n_gpu_layers = -1 if device == "cuda" else 0
        self.model: Any = self.api.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise StageError(f"{path}: llama.cpp cannot load it; what it said stands above.")
        self.vocab: Any = self.api.llama_model_get_vocab(self.model)
        self.vocabulary: int = self.api.llama_vocab_n_tokens(self.vocab)
        self.context_tokens: int = context_tokens or self.api.llama_model_n_ctx_train(self.model)
        self._adapters: dict[str, Any] = {}
        self._adapter: str | None = None
        self._context: Any = None
        self._batch: Any = self.api.llama_batch_init(BATCH_TOKENS, 0, 1)

    @property
    def token_numbers(self) -> int:
        """Numbers in the key-value cache for each token."""
        api, model = self.api, self.model
        width = api.llama_model_n_embd(model) // max(api.llama_model_n_head(model), 1)
        architecture = self.metadata("general.architecture")
        key, value = (
            int(self.metadata(f"{architecture}.attention.{part}_length") or width) for part in ("key", "value")
        )
        numbers: int = api.llama_model_n_layer(model) * api.llama_model_n_head_kv(model) * (key + value)
        return numbers

    def reserve(self, sequences: int) -> None:
        """Takes the memory for so many sequences; called once.

        Raises:
            StageError: There is not enough.
        """
        parameters = self.api.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = sequences * self.context_tokens, sequences
        parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.kv_unified = False
        parameters.flash_attn_type = self.api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = self.api.llama_init_from_model(self.model, parameters)
        if not self._context:
            what = f"llama.cpp cannot hold {sequences} sequences of {self.context_tokens} tokens"
            raise StageError(f"{self._path}: {what}. Set serve.context to a smaller number.")

    def load_adapter(self, name: str, path: Path) -> None:
        """Loads a LoRA adapter.

        Args:
            name: What `decode` calls it.
            path: A GGUF file.

        Raises:
            UserError: It is not a GGUF file, or a broken one.
            StageError: It is no adapter, or does not fit the model.
        """
        read_gguf_header(path, lists=False)
        adapter = self.api.llama_adapter_lora_init(self.model, str(path).encode())
        if not adapter:
            raise StageError(f"{path}: llama.cpp cannot load the adapter; what it said stands above.")
        self._adapters[name] = adapter

    def decode(self, sequence: int, position: int, tokens: Sequence[int], adapter: str | None) -> None:
        """Computes up to `BATCH_TOKENS` tokens of a sequence, and the logits of the last one.

        Args:
            sequence: Its number.
            position: Place of the first token.
            tokens: At least one.
            adapter: Name of the adapter; None for the model itself.

        Raises:
            RuntimeError: llama.cpp failed.
        """
        self._use(adapter)
        batch, last = self._batch, len(tokens) - 1
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, position + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = index == last
        code = self.api.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama.cpp could not decode: code {code}")

    def forget(self, sequence: int, position: int) -> bool:
        """Drops what was computed of a sequence from a position on; False when only all of it can be dropped."""
        memory = self.api.llama_get_memory(self._context)
        dropped: bool = self.api.llama_memory_seq_rm(memory, sequence, position, -1)
        return dropped

    def logits(self) -> npt.NDArray[Any]:
        """Returns the logits of the last token decoded, float32 of shape [vocabulary], valid until the next decode."""
        # Imported here: most answers need no numbers.
        import numpy as np

        found = self.api.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(found, shape=(self.vocabulary,))

    def sample(self, sampler: Any) -> int:
        """Lets a sampler choose what follows the last token decoded."""
        token: int = self.api.llama_sampler_sample(sampler, self._context, -1)
        return token

    def tokenize(self, text: str, *, plain: bool) -> list[int]:
        """Tokenizes text in which special tokens are recognised; `plain` puts the file's start token before it."""
        data = text.encode()
        room = len(data) + 2
        while True:
            tokens = (self.api.llama_token * room)()
            count = self.api.llama_tokenize(self.vocab, data, len(data), tokens, room, plain, True)
            if count >= 0:
                return list(tokens[:count])
            # A negative count is the room that the tokens need.
            room = -count

    def piece(self, token: int, *, special: bool) -> bytes:
        """Returns a token's bytes; those of a control token only when `special`."""
        room = _PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = self.api.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            room = -length

    def metadata(self, key: str) -> str | None:
        """Returns a value of the file's header as text; None when it has none."""
        buffer = ctypes.create_string_buffer(0)
        length = self.api.llama_model_meta_val_str(self.model, key.encode(), buffer, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        self.api.llama_model_meta_val_str(self.model, key.encode(), buffer, length + 1)
        return buffer.value.decode("utf-8", "replace")

    def _use(self, adapter: str | None) -> None:
        if adapter == self._adapter:
            return
        found: Mapping[str, Any] = {} if adapter is None else {adapter: self._adapters[adapter]}
        pointers = (self.api.llama_adapter_lora_p_ctypes * len(found))(*found.values())
        scales = (ctypes.c_float * len(found))(*(1.0 for _ in found))
        if self.api.llama_set_adapters_lora(self._context, pointers, len(found), scales):
            raise RuntimeError(f"llama.cpp could not take the adapter {adapter!r}")
        self._adapter = adapter


def llama_module(name: str) -> Any:
    """Imports a module of llama-cpp-python without the package's classes, whose imports take longer than a small model.

    Args:
        name: In the package, such as `llama_cpp` for the C functions.

    Raises:
        MissingExtra: It is not installed.
    """
    full_name = f"{_PACKAGE}.{name}"
    if _PACKAGE in sys.modules or full_name in sys.modules:
        return importlib.import_module(full_name)
    found = importlib.util.find_spec(_PACKAGE)
    if found is None:
        raise MissingExtra(_PACKAGE, "gguf")
    # Stands for the package meanwhile; whoever imports the package later gets all of it.
    package = ModuleType(_PACKAGE)
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules[_PACKAGE] = package
    try:
        return importlib.import_module(full_name)
    finally:
        del sys.modules[_PACKAGE]


@cache
def _error_log(api: Any) -> Any:
    """Returns what llama.cpp calls with its messages; kept for ever, for it does so as long as the process lives."""
    return api.llama_log_callback(_print_errors)


def _print_errors(level: int, text: bytes, _: Any) -> None:
    if level == _ERROR_LEVEL:
        print(text.decode("utf-8", "replace"), end="", file=sys.stderr, flush=True)
