"""Tasks of the LM Evaluation Harness (package lm-eval), on a model that is loaded already."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.config.schema import EvalConfig
from tunerun.errors import Problem, StageError, UserError, require
from tunerun.models.attention import attention_of
from tunerun.plan.steps import EvalStep
from tunerun.progress import Progress

_EXTRA = "lm-eval"
# Standard errors that no formula gives are drawn; the harness's own 100,000 draws take minutes.
_DRAWS = 1000


@dataclass(frozen=True, slots=True)
class Tasks:
    """Tasks with their data, loaded once for all models."""

    loaded: Mapping[str, Any]
    """What the harness made of the names: its tasks, groups, and which belong to which."""
    template: str | None
    """Chat template that questions go through; None for plain text."""


def load(step: EvalStep, folder: Path) -> Tasks | None:
    """Loads the tasks that a step names, with their data; None when it names none.

    Args:
        step: What to measure.
        folder: Of the base model, for its chat template.

    Raises:
        MissingExtra: lm-eval is not installed.
        UserError: There is no such task, or questions are to go through a chat template and there is none.
        StageError: The data of a task cannot be fetched.
    """
    evaluation = step.eval
    if not evaluation.lm_eval:
        return None
    require("lm_eval", _EXTRA)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    template = None
    if evaluation.lm_eval_chat:
        found = load_template(folder, load_tokenizer(folder).named, step.model.chat_template)
        if found is None:
            fix = "Set model.chat_template=chatml or a Jinja file, or eval.lm_eval_chat=false."
            raise UserError(Problem(where="model.chat_template", what="the model has no chat template.", fix=fix))
        template = found.text
    loaded = _load(_manager(evaluation), evaluation.lm_eval)
    for task in loaded["tasks"].values():
        # As the harness's own command line: a task that says 0 means it.
        if evaluation.lm_eval_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=evaluation.lm_eval_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
    return Tasks(loaded, template)


def _manager(evaluation: EvalConfig) -> Any:
    from lm_eval.tasks import TaskManager

    folder = evaluation.lm_eval_tasks_dir
    manager = TaskManager(include_path=folder, include_defaults=False)
    if all(name in manager.all_tasks or Path(name).is_file() for name in evaluation.lm_eval):
        return manager
    # The harness's own tasks take it many seconds to list.
    return TaskManager(include_path=folder)


def _load(manager: Any, names: Sequence[str]) -> Mapping[str, Any]:
    try:
        loaded: Mapping[str, Any] = manager.load(list(names))
    except KeyError as error:
        # Names were checked before the run; a group of one's own may name others.
        raise UserError(Problem(where="eval.lm_eval", what=f"{' '.join(map(str, error.args))}.")) from error
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StageError(
            f"eval.lm_eval: the data of {', '.join(names)} cannot be fetched: {reason}. "
            "What was fetched once is found again without a network."
        ) from error
    return loaded


def measure(tasks: Tasks, network: Any, folder: Path, step: EvalStep) -> dict[str, Any]:
    """Runs the tasks on a model.

    Args:
        tasks: From `load`.
        network: A causal transformers model.
        folder: Of the base model, for its tokenizer.
        step: Says how many questions with how many examples.

    Returns:
        By task or group: `samples`, `version`, and `metrics`, each with `name`, `filter`, `value`, `stderr` and
        `higher_is_better`.

    Raises:
        StageError: A task cannot be run on this model.
    """
    from lm_eval.evaluator import evaluate
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=step.model.trust_remote_code
    )
    if tasks.template is not None:
        tokenizer.chat_template = tasks.template
    evaluation, was_training = step.eval, network.training
    # What a task draws, examples and answers, is the same for every model.
    random.seed(step.seed)
    np.random.seed(step.seed)
    torch.manual_seed(step.seed)
    for task in tasks.loaded["tasks"].values():
        task.set_fewshot_seed(seed=step.seed)
    with attention_of(network, "sdpa"), Progress("tasks", total=None, unit="requests") as progress:
        model = _model(network, tokenizer, evaluation.batch_size, progress)
        try:
            results = evaluate(
                model,
                tasks.loaded,
                limit=evaluation.lm_eval_limit,
                bootstrap_iters=_DRAWS,
                log_samples=False,
                apply_chat_template=tasks.template is not None,
                fewshot_as_multiturn=tasks.template is not None,
            )
        except ValueError as error:
            raise StageError(f"eval.lm_eval: {error}") from error
    network.train(was_training)
    return {name: _task(name, results) for name in results["results"]}


def _model(network: Any, tokenizer: Any, batch_size: int, progress: Progress) -> Any:
    """Wraps a model for the harness, with tunerun's progress instead of its bars."""
    from lm_eval.models.huggingface import HFLM

    class Counted(HFLM):  # type: ignore[misc]
        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().generate_until(requests, disable_tqdm)

        def _model_call(self, inps: Any, *arguments: Any, **options: Any) -> Any:
            progress.advance(len(inps))
            return super()._model_call(inps, *arguments, **options)

        def _model_generate(self, context: Any, *arguments: Any, **options: Any) -> Any:
            progress.advance(len(context))
            return super()._model_generate(context, *arguments, **options)

    return Counted(pretrained=network, tokenizer=tokenizer, batch_size=batch_size, backend="causal")


def _task(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    values, better = results["results"][name], results["higher_is_better"].get(name, {})
    counts = results["n-samples"].get(name, {})
    return {
        "samples": counts.get("effective"),
        "version": results["versions"].get(name),
        "metrics": list(_metrics(values, better)),
    }


def _metrics(values: Mapping[str, Any], better: Mapping[str, bool]) -> Iterator[dict[str, Any]]:
    # A metric is under `acc,none`, its error under `acc_stderr,none`; a text where there is none.
    for key, value in values.items():
        name, comma, filtered = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{name}_stderr,{filtered}")
        yield {
            "name": name,
            "filter": filtered,
            "value": value,
            "stderr": error if isinstance(error, int | float) else None,
            "higher_is_better": better.get(name),
        }


def table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Lays out the results of each model for a terminal."""
    lines = []
    for name, measured in models.items():
        lines.append(f"{name:8}{'task':32}{'metric':24}{'value':>10}{'stderr':>10}")
        for task, found in measured["tasks"].items():
            for metric in found["metrics"]:
                label = metric["name"] if metric["filter"] == "none" else f"{metric['name']} ({metric['filter']})"
                error = "-" if metric["stderr"] is None else f"{metric['stderr']:.4f}"
                lines.append(f"{'':8}{task[:31]:32}{label[:23]:24}{metric['value']:>10.4f}{error:>10}")
    return "\n".join(lines)
