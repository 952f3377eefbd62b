"""llama.cpp through llama-cpp-python's binding; its own server is not used, for it cuts concurrent streams."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunerun.chat.tokenizer import Tokenizer, load_tokenizer
from tunerun.errors import StageError
from tunerun.formats.gguf_header import CHAT_TEMPLATE
from tunerun.serve.engines import caches
from tunerun.serve.engines.base import Chosen, Send, Service
from tunerun.serve.engines.llama_context import BATCH_TOKENS, LlamaContext
from tunerun.serve.engines.llama_sampling import Sampler, check_schema, sampler
from tunerun.serve.engines.schemas import SchemaFault
from tunerun.serve.engines.scores import likeliest
from tunerun.serve.engines.worker import Worker
from tunerun.serve.protocol import Ability, EngineSpec, Generate
from tunerun.serve.text import Decoder, PieceDecoder

_ADAPTER_SUFFIX = ".gguf"
# Computing a shared beginning anew costs little below this; above, the state of a request before is kept. It was
# computed in other batches, so that its bits may differ: short requests always give the same bits.
_MIN_REUSED_TOKENS = 256


@dataclass(slots=True)
class _Slot:
    """A sequence of llama.cpp."""

    number: int
    adapter: str | None = None
    """What computed the tokens."""
    tokens: list[int] = field(default_factory=list)
    """What its cache holds."""
    taken: int = 0
    """How many requests were there when it was last taken: the smallest has waited longest."""
    free: bool = True

    def shared(self, prompt_ids: Sequence[int], adapter: str | None) -> int:
        """Returns how many leading tokens of a prompt are worth keeping."""
        # The last one is computed in any case: its logits are what the answer begins with.
        longest = min(len(self.tokens), len(prompt_ids) - 1) if adapter == self.adapter else 0
        count = next((index for index in range(longest) if self.tokens[index] != prompt_ids[index]), longest)
        return count if count >= _MIN_REUSED_TOKENS else 0


class LlamaCppEngine:
    """A GGUF file loaded by llama.cpp."""

    abilities: tuple[Ability, ...] = ("seed", "logprobs", "json")

    def __init__(self, spec: EngineSpec) -> None:
        """Loads the file, and the adapters on top of it.

        Raises:
            UserError: A file is not a GGUF file, or a broken one.
            StageError: llama.cpp cannot load it.
            MissingExtra: llama-cpp-python is not installed.
        """
        self._context = LlamaContext(
            Path(spec.weights), context_tokens=spec.context_tokens, threads=spec.threads, device=spec.device
        )
        self._adapters = frozenset(spec.adapters)
        for name, path in spec.adapters.items():
            if not path.endswith(_ADAPTER_SUFFIX):
                raise StageError(f"{path}: llama.cpp takes adapters as GGUF files.")
            self._context.load_adapter(name, Path(path))
        numbers, tokens = self._context.token_numbers, self._context.context_tokens
        self.slots = caches.slots(numbers, caches.HALF_BYTES, tokens, spec.answers)
        self._context.reserve(self.slots)
        self._slots = [_Slot(number) for number in range(self.slots)]
        self._requests = 0
        self._tokenizer: Tokenizer | None = load_tokenizer(Path(spec.tokenizer)) if spec.tokenizer else None
        self.context_tokens = self._context.context_tokens
        self.vocabulary = self._context.vocabulary
        self.chat_template = self._context.metadata(CHAT_TEMPLATE)
        self.bos_token, self.eos_token = self._named_text("bos"), self._named_text("eos")

    def encode(self, text: str, *, plain: bool) -> list[int]:
        """Tokenizes with the model folder's tokenizer when there is one, else with the file's own."""
        if self._tokenizer is not None:
            return self._tokenizer.encode(text, add_special_tokens=plain)
        return self._context.tokenize(text, plain=plain)

    def decoder(self) -> Decoder:
        """Returns a decoder on llama.cpp's own pieces; control tokens have no text."""
        return PieceDecoder(lambda token: self._context.piece(token, special=False))

    def piece(self, token: int) -> bytes:
        """Returns a token's bytes; control tokens have those they are written with."""
        return self._context.piece(token, special=True)

    def ends(self, token: int) -> bool:
        """Says whether llama.cpp knows the token as one that ends a generation."""
        return bool(self._context.api.llama_vocab_is_eog(self._context.vocab, token))

    def fault(self, request: Generate) -> str | None:
        """Checks the adapter's name, and that the JSON schema can be followed."""
        if request.adapter is not None and request.adapter not in self._adapters:
            return f"There is no adapter {request.adapter!r}."
        if request.json_schema is not None:
            try:
                check_schema(self._context, request.json_schema)
            except SchemaFault as error:
                return str(error)
        return None

    def generate(
        self, prompt_ids: Sequence[int], limit: int, request: Generate
    ) -> Generator[Chosen | None, None, None]:
        """Yields the tokens that follow a prompt, end tokens included, and None between the batches of the prompt."""
        slot, kept = self._take(prompt_ids, request.adapter)
        try:
            with sampler(self._context, request) as chooser:
                for start in range(kept, len(prompt_ids), BATCH_TOKENS):
                    if start > kept:
                        yield None
                    self._decode(slot, prompt_ids[start : start + BATCH_TOKENS])
                for count in range(1, limit + 1):
                    chosen = self._choose(chooser, request)
                    yield chosen
                    if count < limit:
                        self._decode(slot, [chosen.token])
        finally:
            slot.free = True

    def _choose(self, chooser: Sampler, request: Generate) -> Chosen:
        token = chooser.choose()
        if request.logprobs is None:
            return Chosen(token)
        return Chosen(token, *likeliest(self._context.logits(), token, request.logprobs))

    def _decode(self, slot: _Slot, tokens: Sequence[int]) -> None:
        position = len(slot.tokens)
        try:
            self._context.decode(slot.number, position, tokens, slot.adapter)
        except RuntimeError:
            # What the cache holds now, nobody knows.
            slot.tokens.clear()
            raise
        slot.tokens.extend(tokens)

    def _take(self, prompt_ids: Sequence[int], adapter: str | None) -> tuple[_Slot, int]:
        """Takes the free slot that holds most of a prompt; returns it with how many tokens need no computation."""
        free = [slot for slot in self._slots if slot.free]
        slot = max(free, key=lambda found: (found.shared(prompt_ids, adapter), -found.taken))
        kept = slot.shared(prompt_ids, adapter)
        if not self._context.forget(slot.number, kept):
            kept = 0
            self._context.forget(slot.number, 0)
        del slot.tokens[kept:]
        self._requests += 1
        slot.adapter, slot.taken, slot.free = adapter, self._requests, False
        return slot, kept

    def _named_text(self, name: str) -> str:
        # Where the file names no token, llama.cpp takes one that is an ordinary word.
        token = self._context.metadata(f"tokenizer.ggml.{name}_token_id")
        return "" if token is None else self.piece(int(token)).decode("utf-8", "replace")


def start(spec: EngineSpec, send: Send) -> Service:
    """Loads a GGUF file."""
    return Worker(LlamaCppEngine(spec), spec.stop, send)
