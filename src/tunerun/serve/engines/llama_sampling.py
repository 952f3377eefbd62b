"""How llama.cpp chooses a token: samplers in a chain, behind a grammar when the answer must follow a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tunerun.serve.engines.llama_context import LlamaContext, llama_module
from tunerun.serve.engines.schemas import SchemaFault, check_size
from tunerun.serve.protocol import Generate

# Models learn `}` and the line's end as one token in some vocabularies: an answer may have it behind its JSON.
_ROOT = b"answer"
_ANSWER = '\nanswer ::= root "\\n"?\n'
_MOST_GRAMMAR_CHARACTERS = 100_000
# What the converter raises on schemas that it does not know.
_CONVERTER_FAULTS = (AssertionError, AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)


@contextmanager
def sampler(context: LlamaContext, request: Generate) -> Iterator[Sampler]:
    """Builds what chooses the tokens of one answer.

    Raises:
        SchemaFault: The answer's JSON schema cannot be followed.
    """
    api = context.api
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    try:
        if request.json_schema is not None:
            api.llama_sampler_chain_add(chain, _grammar_sampler(context, request.json_schema))
        for link in _links(api, request):
            api.llama_sampler_chain_add(chain, link)
        yield Sampler(context, chain, constrained=request.json_schema is not None)
    finally:
        api.llama_sampler_free(chain)


def check_schema(context: LlamaContext, schema: Mapping[str, Any]) -> None:
    """Makes a grammar of a schema, and forgets it.

    Raises:
        SchemaFault: It is too large, or has what llama.cpp's grammars cannot say.
    """
    context.api.llama_sampler_free(_grammar_sampler(context, schema))


class Sampler:
    """Chooses the tokens of one answer."""

    def __init__(self, context: LlamaContext, chain: Any, *, constrained: bool) -> None:
        """Takes a chain of samplers; a constrained one begins with a grammar."""
        self._context, self._chain, self._constrained = context, chain, constrained

    def choose(self) -> int:
        """Chooses what follows the last token decoded.

        Raises:
            RuntimeError: The grammar allows no token of the vocabulary.
        """
        return self._choose_constrained() if self._constrained else self._context.sample(self._chain)

    def _choose_constrained(self) -> int:
        # Imported here: most answers need no numbers.
        import numpy as np

        # As llama_sampler_sample does it; but that one would end the process when the grammar allows no token.
        api, logits = self._context.api, self._context.logits()
        candidates = np.zeros(len(logits), [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        candidates["id"], candidates["logit"] = np.arange(len(logits)), logits
        pointer = candidates.ctypes.data_as(api.llama_token_data_p)
        array = api.llama_token_data_array(data=pointer, size=len(logits), selected=-1, sorted=False)
        api.llama_sampler_apply(self._chain, array)
        found = array.data[array.selected]
        if not np.isfinite(found.logit):
            raise RuntimeError("no token of the vocabulary follows the JSON schema")
        token = int(found.id)
        api.llama_sampler_accept(self._chain, token)
        return token


def _links(api: Any, request: Generate) -> list[Any]:
    if request.temperature == 0:
        return [api.llama_sampler_init_greedy()]
    # The order of transformers and vLLM: temperature before top-k and top-p.
    return [
        api.llama_sampler_init_temp(request.temperature),
        api.llama_sampler_init_top_k(request.top_k),
        api.llama_sampler_init_top_p(request.top_p, 1),
        api.llama_sampler_init_dist(request.seed),
    ]


def _grammar_sampler(context: LlamaContext, schema: Mapping[str, Any]) -> Any:
    check_size(schema)
    try:
        grammar: str = llama_module("llama_grammar").json_schema_to_gbnf(json.dumps(schema))
    except _CONVERTER_FAULTS as error:
        raise SchemaFault(f"llama.cpp cannot follow the JSON schema: {type(error).__name__}: {error}") from error
    if len(grammar) > _MOST_GRAMMAR_CHARACTERS:
        raise SchemaFault(f"The JSON schema makes a grammar of more than {_MOST_GRAMMAR_CHARACTERS} characters.")
    found = context.api.llama_sampler_init_grammar(context.vocab, (grammar + _ANSWER).encode(), _ROOT)
    if not found:
        raise SchemaFault("llama.cpp cannot read the grammar that the JSON schema makes.")
    return found
