"""tunerun's own generation on a model folder, with or without an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.models.stops import stop_token_ids
from tunerun.plan.steps import Quantisation
from tunerun.serve.engines.base import Send, Service
from tunerun.serve.engines.worker import Worker
from tunerun.serve.protocol import EngineSpec, Generate
from tunerun.serve.text import Decoder, WindowDecoder

_CONFIG = "config.json"
_LENGTH = "max_position_embeddings"
# For configs that state no length, such as those of models without position embeddings.
_DEFAULT_CONTEXT_TOKENS = 2048


class TransformersEngine:
    """A model folder loaded by transformers."""

    # A template in the folder is read by the gateway.
    chat_template: str | None = None

    def __init__(self, spec: EngineSpec) -> None:
        """Loads the folder.

        Raises:
            MissingExtra: bitsandbytes is asked for and not installed.
            StageError: The weights cannot be loaded.
            UserError: The tokenizer cannot be loaded.
        """
        # torch and transformers load here, in the engine process only.
        import torch

        from tunerun.models import generate, load

        torch.set_num_threads(spec.threads)
        folder = Path(spec.weights)
        tokenizer = load_tokenizer(Path(spec.tokenizer or spec.weights))
        dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
        # As qlora does by default, so that an adapter meets the base that it was trained on.
        quantisation = None if spec.bits is None else Quantisation(bits=spec.bits, double=True)
        model: Any = load.load_model(folder, dtype=dtype, device=spec.device, quantisation=quantisation)
        for adapter in spec.adapters.values():
            # peft takes as long to import as the rest.
            from tunerun.models.adapters import load_adapter

            model = load_adapter(model, Path(adapter), trainable=False)
        self._model, self._stream, self._backend = model.eval(), generate.stream, tokenizer.backend
        self.end_ids = stop_token_ids(folder, tokenizer)
        self.vocabulary: int = model.get_input_embeddings().num_embeddings
        self.context_tokens = _context_tokens(folder, spec.context_tokens)
        self.bos_token, self.eos_token = (tokenizer.named.get(name, "") for name in ("bos_token", "eos_token"))

    def encode(self, text: str, *, plain: bool) -> list[int]:
        """Tokenizes with the model's tokenizer."""
        return list(self._backend.encode(text, add_special_tokens=plain).ids)

    def decoder(self) -> Decoder:
        """Returns a decoder that leaves special tokens out."""
        return WindowDecoder(lambda tokens: str(self._backend.decode(list(tokens), skip_special_tokens=True)))

    def generate(
        self, prompt_ids: Sequence[int], limit: int, request: Generate, cancelled: Callable[[], bool]
    ) -> Iterator[int]:
        """Yields the tokens that follow a prompt, without the end token."""
        if cancelled():
            return iter(())
        return self._stream(
            self._model,
            prompt_ids,
            max_new_tokens=limit,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed,
            stop_token_ids=self.end_ids,
        )


def start(spec: EngineSpec, send: Send) -> Service:
    """Loads a model folder."""
    return Worker(TransformersEngine(spec), spec.stop, send)


def _context_tokens(folder: Path, wanted: int | None) -> int:
    config = artifacts.read_json(folder / _CONFIG)
    own: int = config.get(_LENGTH, _DEFAULT_CONTEXT_TOKENS)
    return own if wanted is None else min(own, wanted)
