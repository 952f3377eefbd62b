"""Continuous batching: the next tokens of all open answers in one batch, which answers join and leave at any token.

transformers schedules the batches on a thread of its own and keeps keys and values in pages, which prompts that begin
alike share. It draws all tokens of a batch by one rule from one generator; here, each answer's are chosen by its own
temperature, top_p, top_k and seed. The bits of an answer's numbers depend on what else is in its batch.
"""

from __future__ import annotations

import itertools
import queue
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.logits_process import LogitsProcessorList

from tunerun.errors import StageError
from tunerun.models.generate import choose
from tunerun.serve.engines.base import Chosen
from tunerun.serve.engines.scores import likeliest
from tunerun.serve.engines.transformers import TransformersEngine
from tunerun.serve.protocol import EngineSpec, Generate

_PAGE_TOKENS = 256
# Of a batch: what open answers leave of them is taken from prompts that wait.
_BATCH_TOKENS = 512
# How often it is looked whether the manager's thread still runs.
_LOOK_SECONDS = 1.0
# Rows of a batch that belong to no answer.
_NOBODY = -1


@dataclass(frozen=True, slots=True)
class _Row:
    """An answer's place in the batches."""

    request: Generate
    generator: torch.Generator
    chosen: queue.SimpleQueue[Chosen]

    def choose(self, logits: Tensor) -> int:
        """Chooses the answer's next token by logits of shape [vocabulary]."""
        request = self.request
        token = choose(
            logits,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            generator=self.generator,
        )
        told = () if request.logprobs is None else likeliest(logits.numpy(), token, request.logprobs)
        self.chosen.put(Chosen(token, *told))
        return token


class ContinuousEngine(TransformersEngine):
    """A model folder loaded by transformers, which answers in batches; with one adapter for all of them, or none."""

    def __init__(self, spec: EngineSpec) -> None:
        """Loads the folder and starts the batches' thread.

        Raises:
            StageError: The model's attention cannot read keys and values from pages; or as for `TransformersEngine`.
            UserError: As for `TransformersEngine`.
        """
        assert len(spec.adapters) <= 1, "checked before the engine was started"
        super().__init__(spec)
        self._adapter = next(iter(spec.adapters), None)
        self._rows: dict[int, _Row] = {}
        self._numbers = itertools.count()
        model = self._model
        if self._adapter is not None:
            self._use(0)
            model = model.get_base_model()
        self._manager = self._start(model, spec.weights)

    def generate(
        self, prompt_ids: Sequence[int], limit: int, request: Generate
    ) -> Generator[Chosen | None, None, None]:
        """Yields None once the prompt waits for its batch, then the tokens that follow it, the end token included."""
        assert request.adapter == self._adapter, "checked before the engine was started"
        number = next(self._numbers)
        generator = torch.Generator(device="cpu").manual_seed(request.seed)
        row = self._rows[number] = _Row(request, generator, queue.SimpleQueue())
        self._forget_results()
        self._manager.add_request(
            list(prompt_ids),
            request_id=str(number),
            max_new_tokens=limit,
            eos_token_id=sorted(self._end_ids),
            answer=number,
        )
        try:
            yield None
            for _ in range(limit):
                yield self._next(row)
        finally:
            self._manager.cancel_request(str(number))
            del self._rows[number]

    def _next(self, row: _Row) -> Chosen:
        while True:
            try:
                return row.chosen.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                if not self._manager.is_running():
                    # One failed batch ends its thread. The gateway starts the engine again.
                    raise SystemExit("engine: continuous batching has ended") from None

    def _forget_results(self) -> None:
        # Whole answers, which the manager keeps until somebody takes them.
        while self._manager.get_result(timeout=0) is not None:
            pass

    def _start(self, model: Any, folder: str) -> Any:
        # Others leave out the pages that they are given, and compute something else.
        if not model._supports_attention_backend:
            raise StageError(_unfit(folder, f"{type(model).__name__} has an attention of its own"))
        config = ContinuousBatchingConfig(
            page_size=_PAGE_TOKENS,
            num_blocks=self.slots * -(-self.context_tokens // _PAGE_TOKENS),
            max_batch_tokens=_BATCH_TOKENS,
            max_requests_per_batch=self.slots,
            # There is a whole context for every slot.
            safety_margin=0.0,
            auto_switch_to_flash=False,
            # Tokens are chosen by Python code between the steps.
            use_cuda_graph=False,
            use_async_batching=False,
        )
        try:
            manager = model.init_continuous_batching(
                generation_config=GenerationConfig(do_sample=False, eos_token_id=-1), continuous_batching_config=config
            )
            choosers = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([_Choosers(self._rows)]))
            choosers.tensors_required = 1
            manager.logit_processor = choosers
            # Makes the pages: on the other thread, what is wrong with them could not be told.
            manager.warmup()
        except (ValueError, AttributeError) as error:
            raise StageError(_unfit(folder, str(error))) from error
        manager.start()
        return manager


class _Choosers(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Leaves of each row's scores the one token that its answer chooses."""

    supported_kwargs: ClassVar[dict[str, type]] = {"answer": int}
    ignored_kwargs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, rows: dict[int, _Row]) -> None:
        self._rows = rows

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.fill_(_NOBODY)

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> Tensor:
        answers = [request.state.logit_processor_kwargs["answer"] for request in requests_with_new_token]
        return torch.tensor(answers, dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        left = torch.full_like(scores, -torch.inf)
        for index, (answer, logits) in enumerate(zip(tensor_arg.tolist(), scores.cpu(), strict=False)):
            row = self._rows.get(answer)
            # Whoever asked may be gone: then any token will do.
            left[index, 0 if row is None else row.choose(logits)] = 0
        return left


def _unfit(folder: str, reason: str) -> str:
    return f"{folder}: serve.batching=continuous is not possible with this model: {reason}. Take serve.batching=single."
