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

from tunerun import artifacts, text_metrics
from tunerun.artifacts import Artifact
from tunerun.base_model import BaseModel, read_base
from tunerun.evaluate import harness
from tunerun.evaluate.preference import Preference, compare, measure
from tunerun.formats.pairs import PairStore, open_store
from tunerun.formats.tokens import TokenStore
from tunerun.models import ask, held, load, references, vocabulary
from tunerun.models.ask import Questions
from tunerun.models.attention import SEGMENTS
from tunerun.models.score import Score, score
from tunerun.plan.placement import Placement
from tunerun.plan.steps import EvalStep
from tunerun.progress import Progress

GENERATED = "generated.jsonl"
"""Held-out questions, the answers they should have, and those of each model."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What every model is measured on."""

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
    tasks = harness.load(step, base.folder)
    prompts = ask.read_questions(base.folder, step.eval.prompts, chat=step.chat, chat_template=step.model.chat_template)
    split, folder = ("eval", artifacts.EVAL_DATA) if (out / artifacts.EVAL_DATA).is_dir() else ("train", artifacts.DATA)
    store = open_store(out / folder)
    if split == "train":
        print("eval: no rows were held out (data.eval_fraction, data.eval_path): the loss is that of training rows")
    work = _Work(prompts, *references.questions(_imitated(store), prompts, count=step.eval.generate_rows))
    models: dict[str, Any] = {}
    tokens = 0
    generated: dict[str, list[str]] = {}
    before: Preference | None = None
    for name, network in _networks(step, base, out):
        measured, preference = _scores(step, network, store)
        models[name], generated[name] = _report(step, network, work, measured)
        tokens = measured.trained_tokens
        if preference is not None:
            models[name]["preference"] = compare(preference, before)
            before = preference
        if tasks is not None:
            with _precision(step.placement):
                models[name]["tasks"] = harness.measure(tasks, network, base.folder, step)
    counts = {"rows": _rows(step, store), "tokens": tokens, "generated_rows": len(work.references)}
    target = f"{artifacts.EVAL}/{artifacts.STAGE_REPORT}"
    artifacts.write_json(out / target, {"schema": artifacts.REPORT_SCHEMA, "split": split, **counts, "models": models})
    _print_table(models, split, counts)
    if tasks is not None:
        print(harness.table(models))
    made = [artifacts.describe(out, "report", target)]
    if work.references:
        made.append(_write_generated(out, work, generated))
    return made


def _imitated(store: TokenStore | PairStore) -> TokenStore:
    """Returns the rows whose answers are as they should be."""
    return store.chosen if isinstance(store, PairStore) else store


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
    device, dtype = step.placement.device, held.FROZEN_DTYPES[step.placement.precision]
    if random:
        return load.random_model(folder, seed=step.seed, device=device, attention=SEGMENTS).to(dtype)
    options: dict[str, Any] = {"dtype": dtype, "device": device, "attention": SEGMENTS}
    options["trust_remote_code"] = step.model.trust_remote_code
    if step.quantisation is None:
        network = held.load_model(folder, **options)
    else:
        network = load.load_dequantised(folder, quantisation=step.quantisation, **options)
    if step.model.resize_embeddings:
        # A complete model has the rows already; the base gets those that training gave it.
        vocabulary.grow_to_tokenizer(network, folder)
    return network


def _rows(step: EvalStep, store: TokenStore | PairStore) -> int:
    return len(store) if step.eval.max_rows is None else min(step.eval.max_rows, len(store))


def _scores(step: EvalStep, network: Any, store: TokenStore | PairStore) -> tuple[Score, Preference | None]:
    """Returns the loss (of the better answers, where there are worse ones), and how these compare."""
    rows, sides = _rows(step, store), 2 if isinstance(store, PairStore) else 1
    sizes: dict[str, Any] = {"batch_size": step.eval.batch_size, "device": step.placement.device}
    with Progress("eval", total=sides * rows, unit="rows") as progress, _precision(step.placement):
        if isinstance(store, TokenStore) and store.labels is None:
            return score(network, store, max_rows=rows, advance=progress.advance, **sizes), None
        preference = measure(network, store, rows, advance=progress.advance, **sizes)
        return preference.better.score(), preference


def _report(step: EvalStep, network: Any, work: _Work, measured: Score) -> tuple[dict[str, Any], list[str]]:
    """Returns what the report says of a model, and its answers to held-out questions."""
    asked = len(work.prompts.texts) + len(work.questions.texts)
    with Progress("answer", total=asked, unit="rows") as progress, _precision(step.placement):
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
    return found, texts


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
    compared = any("preference" in measured for measured in models.values())
    columns = f"{'accuracy':>10}{'margin':>10}" if compared else ""
    print(f"{'model':8}{'loss':>10}{'perplexity':>14}{columns}   on {counts['rows']} {split} rows")
    for name, measured in models.items():
        values = (measured["loss"], measured["perplexity"])
        loss, perplexity = ("not finite" if value is None else f"{value:,.4f}" for value in values)
        line = f"{name:8}{loss:>10}{perplexity:>14}"
        if compared:
            found = (measured["preference"][key] for key in ("accuracy", "margin"))
            line += "".join(f"{'-' if value is None else f'{value:.4f}':>10}" for value in found)
        print(line)
    if not counts["generated_rows"]:
        return
    heads = "".join(f"{head:>10}" for head in ("BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L"))
    print(f"{'model':8}{heads}   on {counts['generated_rows']} answers")
    for name, measured in models.items():
        print(f"{name:8}" + "".join(f"{value:>10.2f}" for value in measured["text"].values()))
