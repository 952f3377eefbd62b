"""The eval stage: loss, perplexity and answers of the base model and of the tuned one."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.base_model import BaseModel, read_base
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import Tokenizer, load_tokenizer
from tunerun.errors import Problem, UserError
from tunerun.evaluate.preference import Preference, compare, measure
from tunerun.formats.pairs import PairStore, open_store
from tunerun.formats.tokens import TokenStore
from tunerun.models import load, vocabulary
from tunerun.models.ask import encode_prompt
from tunerun.models.attention import SEGMENTS, attention_of
from tunerun.models.generate import answer_greedily, stop_token_ids
from tunerun.models.score import Score, score
from tunerun.plan.steps import EvalStep, Placement
from tunerun.progress import Progress

REPORT = "report.json"
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


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
    tokenizer = load_tokenizer(base.folder)
    prompts = _prompts(step, base, tokenizer)
    split, folder = ("eval", artifacts.EVAL_DATA) if (out / artifacts.EVAL_DATA).is_dir() else ("train", artifacts.DATA)
    store = open_store(out / folder)
    if split == "train":
        print("eval: no rows were held out (data.eval_fraction, data.eval_path): the loss is that of training rows")
    models: dict[str, Any] = {}
    tokens = 0
    before: Preference | None = None
    for name, network in _networks(step, base, out):
        measured, preference, answers = _measure(step, network, store, prompts, tokenizer, base.folder)
        loss, perplexity = _finite(measured.loss), _finite(measured.perplexity)
        models[name] = {"loss": loss, "perplexity": perplexity, "answers": answers}
        if preference is not None:
            models[name]["preference"] = compare(preference, before)
            before = preference
        tokens = measured.trained_tokens
    rows = len(store) if step.eval.max_rows is None else min(step.eval.max_rows, len(store))
    report = {"schema": 1, "split": split, "rows": rows, "tokens": tokens, "models": models}
    target = f"{artifacts.EVAL}/{REPORT}"
    artifacts.write_json(out / target, report)
    _print_table(models, split, rows)
    return [artifacts.describe(out, "report", target)]


def _prompts(step: EvalStep, base: BaseModel, tokenizer: Tokenizer) -> list[list[int]]:
    if not step.chat:
        return [encode_prompt(tokenizer, None, prompt) for prompt in step.eval.prompts]
    template = load_template(base.folder, tokenizer.named, step.model.chat_template)
    if template is None:
        fix = "Set model.chat_template=chatml or a Jinja file."
        raise UserError(Problem(where="model.chat_template", what="the model has no chat template.", fix=fix))
    return [encode_prompt(tokenizer, template, prompt) for prompt in step.eval.prompts]


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
    options: dict[str, Any] = {"dtype": dtype, "device": device, "attention": SEGMENTS}
    options["trust_remote_code"] = step.model.trust_remote_code
    if step.quantisation is None:
        network = load.load_model(folder, **options)
    else:
        network = load.load_dequantised(folder, quantisation=step.quantisation, **options)
    if step.model.resize_embeddings:
        # A complete model has the rows already; the base gets those that training gave it.
        vocabulary.grow_to_tokenizer(network, folder)
    return network


def _measure(
    step: EvalStep,
    network: Any,
    store: TokenStore | PairStore,
    prompts: list[list[int]],
    tokenizer: Tokenizer,
    folder: Path,
) -> tuple[Score, Preference | None, list[dict[str, Any]]]:
    """Returns the loss (of better answers, where there are worse ones), how answers compare, and answers."""
    rows = len(store) if step.eval.max_rows is None else min(step.eval.max_rows, len(store))
    sizes: dict[str, Any] = {"batch_size": step.eval.batch_size, "device": step.placement.device}
    sides = 2 if isinstance(store, PairStore) else 1
    preference: Preference | None = None
    with Progress("eval", total=sides * rows + len(prompts), unit="rows") as progress, _precision(step.placement):
        if isinstance(store, PairStore) or store.labels is not None:
            preference = measure(network, store, rows, advance=progress.advance, **sizes)
            measured = preference.better.score()
        else:
            measured = score(network, store, max_rows=rows, advance=progress.advance, **sizes)
        with attention_of(network, "sdpa"):
            answers = _answers(step, network, prompts, tokenizer, folder, progress)
    return measured, preference, answers


def _answers(
    step: EvalStep, network: Any, prompts: list[list[int]], tokenizer: Tokenizer, folder: Path, progress: Progress
) -> list[dict[str, Any]]:
    stops = stop_token_ids(folder, tokenizer)
    found: list[dict[str, Any]] = []
    size = step.eval.batch_size
    for start in range(0, len(prompts), size):
        part = prompts[start : start + size]
        answers = answer_greedily(network, part, max_new_tokens=step.eval.max_new_tokens, stop_token_ids=stops)
        for prompt, answer in zip(step.eval.prompts[start : start + size], answers, strict=True):
            text = tokenizer.backend.decode(list(answer.token_ids), skip_special_tokens=True)
            found.append({"prompt": prompt, "answer": text, "tokens": len(answer.token_ids), "stopped": answer.stopped})
        progress.advance(len(part))
    return found


def _precision(placement: Placement) -> Any:
    if placement.precision == "bf16":
        return torch.autocast(placement.device, torch.bfloat16)
    return nullcontext()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _print_table(models: dict[str, Any], split: str, rows: int) -> None:
    compared = any("preference" in measured for measured in models.values())
    columns = f"{'accuracy':>10}{'margin':>10}" if compared else ""
    print(f"{'model':8}{'loss':>10}{'perplexity':>14}{columns}   on {rows} {split} rows")
    for name, measured in models.items():
        values = (measured["loss"], measured["perplexity"])
        loss, perplexity = ("not finite" if value is None else f"{value:,.4f}" for value in values)
        line = f"{name:8}{loss:>10}{perplexity:>14}"
        if compared:
            found = (measured["preference"][key] for key in ("accuracy", "margin"))
            line += "".join(f"{'-' if value is None else f'{value:.4f}':>10}" for value in found)
        print(line)
