"""llama.cpp through llama-cpp-python's binding; its own server is not used, for it cuts concurrent streams."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunerun.chat.tokenizer import Tokenizer, load_tokenizer
from tunerun.errors import StageError, require
from tunerun.serve.engines.base import Send, Service
from tunerun.serve.engines.worker import Worker
from tunerun.serve.protocol import EngineSpec, Generate
from tunerun.serve.text import Decoder, PieceDecoder

_MAGIC = b"GGUF"
_TEMPLATE_KEY = "tokenizer.chat_template"
# Computing a shared beginning anew costs little below this; above, the state of the request before is kept. It was
# computed in other batches, so that its bits may differ: short requests always give the same bits.
_MIN_REUSED_TOKENS = 256


class LlamaCppEngine:
    """A GGUF file loaded by llama.cpp."""

    def __init__(self, spec: EngineSpec) -> None:
        """Loads the file.

        Raises:
            StageError: The file is not a GGUF file, or llama.cpp cannot load it.
            MissingExtra: llama-cpp-python is not installed.
        """
        _check_magic(Path(spec.weights))
        self._api: Any = require("llama_cpp", "gguf")
        try:
            self._llama: Any = self._api.Llama(
                model_path=spec.weights,
                n_ctx=spec.context_tokens or 0,
                n_threads=spec.threads,
                n_threads_batch=spec.threads,
                n_gpu_layers=-1 if spec.device == "cuda" else 0,
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            raise StageError(f"{spec.weights}: llama.cpp cannot load it: {error}") from error
        self._vocabulary: Any = self._api.llama_model_get_vocab(self._llama.model)
        self._tokenizer: Tokenizer | None = load_tokenizer(Path(spec.tokenizer)) if spec.tokenizer else None
        self._evaluated: list[int] = []
        # llama.cpp rounds the context up.
        self.context_tokens: int = min(self._llama.n_ctx(), spec.context_tokens or self._llama.n_ctx())
        self.vocabulary: int = self._llama.n_vocab()
        self.end_ids = frozenset(
            token for token in range(self.vocabulary) if self._api.llama_vocab_is_eog(self._vocabulary, token)
        )
        metadata: dict[str, str] = self._llama.metadata
        self.chat_template = metadata.get(_TEMPLATE_KEY)
        self.bos_token = self._special_text(self._llama.token_bos())
        self.eos_token = self._special_text(self._llama.token_eos())

    def encode(self, text: str, *, plain: bool) -> list[int]:
        """Tokenizes with the model folder's tokenizer when there is one, else with the file's own."""
        if self._tokenizer is not None:
            return list(self._tokenizer.backend.encode(text, add_special_tokens=plain).ids)
        return list(self._llama.tokenize(text.encode(), add_bos=plain, special=True))

    def decoder(self) -> Decoder:
        """Returns a decoder on llama.cpp's own pieces; control tokens have no text."""
        return PieceDecoder(lambda token: self._piece(token, special=False))

    def generate(
        self, prompt_ids: Sequence[int], limit: int, request: Generate, cancelled: Callable[[], bool]
    ) -> Iterator[int]:
        """Yields the tokens that follow a prompt, end tokens included; looks for a cancel before each batch."""
        kept = self._reuse(prompt_ids)
        batch = self._llama.n_batch
        with self._sampler(request) as sampler:
            for start in range(kept, len(prompt_ids), batch):
                if cancelled():
                    return
                self._evaluate(prompt_ids[start : start + batch])
            for count in range(1, limit + 1):
                token = self._api.llama_sampler_sample(sampler, self._llama.ctx, -1)
                yield token
                if count < limit:
                    self._evaluate([token])

    def _evaluate(self, tokens: Sequence[int]) -> None:
        self._llama.eval(tokens)
        self._evaluated.extend(tokens)

    def _reuse(self, prompt_ids: Sequence[int]) -> int:
        """Returns how many leading tokens of the prompt need no computation, and forgets all others."""
        # The last one is computed in any case: its logits are what the answer begins with.
        longest = min(len(self._evaluated), len(prompt_ids) - 1)
        shared = next((index for index in range(longest) if self._evaluated[index] != prompt_ids[index]), longest)
        memory = self._api.llama_get_memory(self._llama.ctx)
        if shared < _MIN_REUSED_TOKENS or not self._api.llama_memory_seq_rm(memory, -1, shared, -1):
            shared = 0
            self._llama.reset()
        self._llama.n_tokens = shared
        del self._evaluated[shared:]
        return shared

    @contextmanager
    def _sampler(self, request: Generate) -> Iterator[Any]:
        api = self._api
        chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        try:
            if request.temperature == 0:
                links = [api.llama_sampler_init_greedy()]
            else:
                # The order of transformers and vLLM: temperature before top-k and top-p.
                links = [
                    api.llama_sampler_init_temp(request.temperature),
                    api.llama_sampler_init_top_k(request.top_k),
                    api.llama_sampler_init_top_p(request.top_p, 1),
                    api.llama_sampler_init_dist(request.seed),
                ]
            for link in links:
                api.llama_sampler_chain_add(chain, link)
            yield chain
        finally:
            api.llama_sampler_free(chain)

    def _piece(self, token: int, *, special: bool) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = self._api.llama_token_to_piece(self._vocabulary, token, buffer, room, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            # A negative length is the room that the piece needs.
            room = -length

    def _special_text(self, token: int) -> str:
        return self._piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""


def start(spec: EngineSpec, send: Send) -> Service:
    """Loads a GGUF file."""
    return Worker(LlamaCppEngine(spec), spec.stop, send)


def _check_magic(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise StageError(f"{path}: is not a GGUF file.")
