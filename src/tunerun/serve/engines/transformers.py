"""tunerun's own generation on a model folder, with any number of adapters on top.

Each answer is computed by itself, so that its bits are those of a single client; `continuous` computes them in batches.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.models.stops import stop_token_ids
from tunerun.serve.engines import caches
from tunerun.serve.engines.base import Chosen, Send, Service
from tunerun.serve.engines.scores import likeliest, pieces_of
from tunerun.serve.engines.worker import Worker
from tunerun.serve.protocol import Ability, EngineSpec, Generate
from tunerun.serve.text import Decoder, WindowDecoder

_CONFIG = "config.json"
_LENGTH = "max_position_embeddings"
# For configs that state no length, such as those of models without position embeddings.
_DEFAULT_CONTEXT_TOKENS = 2048
# Of a GPU's memory that is free when the model is loaded; the rest is for computing.
_CACHE_SHARE = 0.5


class TransformersEngine:
    """A model folder loaded by transformers."""

    # A template in the folder is read by the gateway.
    chat_template: str | None = None
    abilities: tuple[Ability, ...] = ("seed", "logprobs")

    def __init__(self, spec: EngineSpec) -> None:
        """Loads the folder, and the adapters on top of it.

        Raises:
            MissingExtra: bitsandbytes is asked for and not installed.
            StageError: The weights cannot be loaded.
            UserError: The tokenizer or an adapter cannot be loaded.
        """
        # torch and transformers load here, in the engine process only.
        import torch

        from tunerun.models import generate, load

        torch.set_num_threads(spec.threads)
        folder = Path(spec.weights)
        tokenizer = load_tokenizer(Path(spec.tokenizer or spec.weights))
        dtype = torch.bfloat16 if spec.precision == "bf16" else torch.float32
        self._model: Any = load.load_model(
            folder, dtype=dtype, device=spec.device, quantisation=spec.quantisation
        ).eval()
        self._base_vocabulary: int = self._model.get_input_embeddings().num_embeddings
        self._adapters = {name: index for index, name in enumerate(spec.adapters)}
        self._active: int | None = None
        if spec.adapters:
            self._load_adapters([Path(path) for path in spec.adapters.values()])
        self._steps, self._tokenizer = generate.steps, tokenizer
        self.piece = pieces_of(tokenizer.backend)
        self._end_ids = stop_token_ids(folder, tokenizer)
        self.vocabulary: int = self._model.get_input_embeddings().num_embeddings
        self.context_tokens = _context_tokens(folder, spec.context_tokens)
        room = caches.MEMORY_BYTES
        if spec.device == "cuda":
            room = int(torch.cuda.mem_get_info()[0] * _CACHE_SHARE)
        numbers = _cached_numbers(self._model.config.get_text_config())
        self.slots = caches.slots(numbers, dtype.itemsize, self.context_tokens, spec.answers, room)
        self.bos_token, self.eos_token = (tokenizer.named.get(name, "") for name in ("bos_token", "eos_token"))

    def encode(self, text: str, *, plain: bool) -> list[int]:
        """Tokenizes with the model's tokenizer."""
        return self._tokenizer.encode(text, add_special_tokens=plain)

    def decoder(self) -> Decoder:
        """Returns a decoder that leaves special tokens out."""
        return WindowDecoder(self._tokenizer.decode)

    def ends(self, token: int) -> bool:
        """Says whether the model's configs or its tokenizer name the token as an end."""
        return token in self._end_ids

    def fault(self, request: Generate) -> str | None:
        """Checks the adapter's name; JSON schemas are not followed."""
        if request.adapter is not None and request.adapter not in self._adapters:
            return f"There is no adapter {request.adapter!r}."
        return None if request.json_schema is None else "The transformers engine cannot follow a JSON schema."

    def generate(
        self, prompt_ids: Sequence[int], limit: int, request: Generate
    ) -> Generator[Chosen | None, None, None]:
        """Yields the tokens that follow a prompt, the end token included."""
        adapter = None if request.adapter is None else self._adapters[request.adapter]
        steps = iter(
            self._steps(
                self._model,
                prompt_ids,
                max_new_tokens=limit,
                temperature=request.temperature,
                top_p=request.top_p,
                top_k=request.top_k,
                seed=request.seed,
                vocabulary=self._base_vocabulary if adapter is None else None,
            )
        )
        while True:
            # Other answers were computed since the last token.
            self._use(adapter)
            step = next(steps, None)
            if step is None:
                return
            if request.logprobs is None:
                yield Chosen(step.token)
            else:
                yield Chosen(step.token, *likeliest(step.logits.numpy(), step.token, request.logprobs))

    def _load_adapters(self, folders: Sequence[Path]) -> None:
        # peft takes as long to import as the rest.
        from tunerun.models.adapters import choose_adapter, load_adapters

        self._model, self._choose_adapter = load_adapters(self._model, folders).eval(), choose_adapter
        self._choose_adapter(self._model, self._active)

    def _use(self, adapter: int | None) -> None:
        if adapter != self._active:
            self._choose_adapter(self._model, adapter)
            self._active = adapter


def start(spec: EngineSpec, send: Send) -> Service:
    """Loads a model folder."""
    if spec.batching == "single":
        return Worker(TransformersEngine(spec), spec.stop, send)
    # Needs torch and transformers when it is imported.
    from tunerun.serve.engines.continuous import ContinuousEngine

    return Worker(ContinuousEngine(spec), spec.stop, send)


def _context_tokens(folder: Path, wanted: int | None) -> int:
    config = artifacts.read_json(folder / _CONFIG)
    own: int = config.get(_LENGTH, _DEFAULT_CONTEXT_TOKENS)
    return own if wanted is None else min(own, wanted)


def _cached_numbers(config: Any) -> int:
    """Returns how many numbers the key-value cache holds for a token; 0 for models without attention."""
    heads: int = getattr(config, "num_attention_heads", None) or 0
    cached: int = getattr(config, "num_key_value_heads", None) or heads
    width: int = getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1)
    return 2 * cached * width * int(config.num_hidden_layers)
