"""The eval stage: loss, perplexity and answers of the base model and of the tuned one."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.base_model import BaseModel, read_base
from tunerun.evaluate import held_out, text_metrics
from tunerun.formats.tokens import TokenStore
from tunerun.models import ask, load
from tunerun.models.ask import Questions
from tunerun.models.attention import SEGMENTS
from tunerun.models.score import score
from tunerun.plan.steps import EvalStep, Placement
from tunerun.progress import Progress

REPORT = "report.json"
GENERATED = "generated.jsonl"
"""Held-out questions, the answers they should have, and those of each model."""
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class _Work:
    """What every model is measured on."""

    store: TokenStore
    prompts: Questions
    """Of the user."""
    questions: Questions
    """Of held-out rows."""
    references: list[str]
    """The answers these should have."""


def run(step: EvalStep, out: Path) -> list[Artifact]:
    """Measures the models of a run and writes eval/report.json.

    Args:
        step: What to measure.
        out: The run directory; has model.json and data/.

    Returns:
        The report.

    Raises:
        UserError: Prompts are to be asked through a chat template and the model has none.
        StageError: The data or a model cannot be read.
    """
    torch.set_num_threads(step.placement.threads)
    base = read_base(out)
    prompts = ask.read_questions(base.folder, step.eval.prompts, chat=step.chat, chat_template=step.model.chat_template)
    split, folder = ("eval", artifacts.EVAL_DATA) if (out / artifacts.EVAL_DATA).is_dir() else ("train", artifacts.DATA)
    store = TokenStore.open(out / folder)
    if split == "train":
        print("eval: no rows were held out (data.eval_fraction, data.eval_path): the loss is that of training rows")
    work = _Work(store, prompts, *held_out.questions(store, prompts, count=step.eval.generate_rows))
    models: dict[str, Any] = {}
    tokens = 0
    generated: dict[str, list[str]] = {}
    for name, network in _networks(step, base, out):
        models[name], tokens, generated[name] = _measure(step, network, work)
    rows = len(store) if step.eval.max_rows is None else min(step.eval.max_rows, len(store))
    counts = {"rows": rows, "tokens": tokens, "generated_rows": len(work.references)}
    target = f"{artifacts.EVAL}/{REPORT}"
    artifacts.write_json(out / target, {"schema": 1, "split": split, **counts, "models": models})
    _print_table(models, split, counts)
    made = [artifacts.describe(out, "report", target)]
    if work.references:
        made.append(_write_generated(out, work, generated))
    return made


def _networks(step: EvalStep, base: BaseModel, out: Path) -> Iterator[tuple[str, Any]]:
    """Yields the models one after the other; only one is in memory at a time."""
    network = _load(step, base.folder, random=step.model.init == "random")
    if step.adapter is not None:
        from tunerun.models.adapters import load_adapter

        adapted = load_adapter(network, out / step.adapter, trainable=False)
        with adapted.disable_adapter():
            yield "base", network
        yield "tuned", network
        return
    yield "base", network
    if step.tuned is not None:
        del network
        gc.collect()
        yield "tuned", _load(step, out / step.tuned, random=False)


def _load(step: EvalStep, folder: Path, *, random: bool) -> Any:
    device, dtype = step.placement.device, _DTYPES[step.placement.precision]
    if random:
        return load.random_model(folder, seed=step.seed, device=device, attention=SEGMENTS).to(dtype)
    remote = step.model.trust_remote_code
    return load.load_model(folder, dtype=dtype, device=device, attention=SEGMENTS, trust_remote_code=remote)


def _measure(step: EvalStep, network: Any, work: _Work) -> tuple[dict[str, Any], int, list[str]]:
    """Returns what the report says of a model, the tokens its loss is over, and its answers to held-out questions."""
    rows = len(work.store) if step.eval.max_rows is None else min(step.eval.max_rows, len(work.store))
    asked = len(work.prompts.texts) + len(work.questions.texts)
    with Progress("eval", total=rows + asked, unit="rows") as progress, _precision(step.placement):
        measured = score(
            network,
            work.store,
            max_rows=rows,
            batch_size=step.eval.batch_size,
            device=step.placement.device,
            advance=progress.advance,
        )
        answers, generated = (
            ask.answer(
                network,
                questions,
                max_new_tokens=step.eval.max_new_tokens,
                batch_size=step.eval.batch_size,
                advance=progress.advance,
            )
            for questions in (work.prompts, work.questions)
        )
    texts = [item["answer"] for item in generated]
    found: dict[str, Any] = {
        "loss": _finite(measured.loss),
        "perplexity": _finite(measured.perplexity),
        "answers": answers,
    }
    if texts:
        found["text"] = text_metrics.measure(texts, work.references)
    return found, measured.trained_tokens, texts


def _write_generated(out: Path, work: _Work, generated: dict[str, list[str]]) -> Artifact:
    lines = [
        {"prompt": prompt, "reference": reference, **{name: texts[index] for name, texts in generated.items()}}
        for index, (prompt, reference) in enumerate(zip(work.questions.texts, work.references, strict=True))
    ]
    target = f"{artifacts.EVAL}/{GENERATED}"
    artifacts.write_text(out / target, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return artifacts.describe(out, "answers", target)


def _precision(placement: Placement) -> Any:
    if placement.precision == "bf16":
        return torch.autocast(placement.device, torch.bfloat16)
    return nullcontext()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _print_table(models: dict[str, Any], split: str, counts: dict[str, int]) -> None:
    print(f"{'model':8}{'loss':>10}{'perplexity':>14}   on {counts['rows']} {split} rows")
    for name, measured in models.items():
        values = (measured["loss"], measured["perplexity"])
        loss, perplexity = ("not finite" if value is None else f"{value:,.4f}" for value in values)
        print(f"{name:8}{loss:>10}{perplexity:>14}")
    if not counts["generated_rows"]:
        return
    heads = "".join(f"{head:>10}" for head in ("BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L"))
    print(f"{'model':8}{heads}   on {counts['generated_rows']} answers")
    for name, measured in models.items():
        print(f"{name:8}" + "".join(f"{value:>10.2f}" for value in measured["text"].values()))
