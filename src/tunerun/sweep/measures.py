"""What trials are compared by: each measure is a number read from a run's files, if its plan lets there be one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, TypeVar

from tunerun.errors import Problem
from tunerun.plan.plan import Plan
from tunerun.plan.steps import EvalStep, ExportStep, Step, VerifyStep
from tunerun.run.results import Results

Better = Literal["lower", "higher"]
Lack = tuple[str, str]
"""Why a plan gives no such number, and the fix."""

_Step = TypeVar("_Step", bound=Step)


def measure(found: Results) -> dict[str, float]:
    """Returns every measure that a run's files tell."""
    values = {name: item.read(found) for name, item in MEASURES.items()}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def better(name: str) -> Better:
    """Says which end of a measure is the good one."""
    return MEASURES[name].better


def missing(plan: Plan, metrics: Sequence[str]) -> list[Problem]:
    """Finds the metrics that a trial of a plan will not have.

    Args:
        plan: Of the trial.
        metrics: What it is to be ranked by.
    """
    lacks = {name: MEASURES[name].lack(plan) for name in metrics}
    return [
        Problem(where="sweep.metric", what=f"a trial would have no {name}: {lack[0]}", fix=lack[1])
        for name, lack in lacks.items()
        if lack is not None
    ]


def unjudged(plan: Plan, judge: str, instead: str) -> list[Problem]:
    """Finds what keeps the held-out loss of a trial from being measured while it trains.

    Args:
        plan: Of the trial.
        judge: Who compares trials by it, as an error names it.
        instead: The setting that does without.
    """
    if plan.train is None:
        fix = f"Add train to the stages, or set {instead}."
        return [Problem(where="stages", what=f"nothing is trained, and {judge} compares losses meanwhile.", fix=fix)]
    if plan.train.train.eval_steps is None:
        what = f"is null, so that no held-out loss is measured while training, by which {judge} compares trials."
        fix = f"Set train.eval_steps=50, for instance, or {instead}."
        return [Problem(where="train.eval_steps", what=what, fix=fix)]
    return []


def _eval_loss(found: Results) -> float | None:
    tuned = found.measured("tuned")
    if tuned is not None:
        loss: float | None = tuned["loss"]
        return loss
    return _last(found, "eval_loss")


def _train_loss(found: Results) -> float | None:
    return _last(found, "loss")


def _rouge(found: Results) -> float | None:
    return _generated(found, "rougeL")


def _bleu(found: Results) -> float | None:
    return _generated(found, "bleu4")


def _generated(found: Results, name: str) -> float | None:
    tuned = found.measured("tuned")
    scores: Mapping[str, float] | None = tuned["text"] if tuned is not None and "text" in tuned else None
    return _last(found, f"eval_{name}") if scores is None else scores[name]


def _tokens_per_second(found: Results) -> float | None:
    speeds = [row["tokens_per_second"] for row in found.metrics if "tokens_per_second" in row]
    return median(speeds) if speeds else None


def _gguf_bytes(found: Results) -> float | None:
    made = [item for stage in found.record.stages.values() for item in stage.artifacts]
    # An adapter alone is a file in GGUF too, of another kind.
    return min((float(item.bytes) for item in made if item.kind == "gguf"), default=None)


def _quantisation_kl(found: Results) -> float | None:
    gates = found.verification["gates"] if found.verification is not None else []
    values = [gate["measured"]["mean_kl_nats"] for gate in gates if _is_quantisation(gate)]
    return max(values) if values else None


def _is_quantisation(gate: Mapping[str, Any]) -> bool:
    return str(gate["name"]).startswith("gguf_logits") and "mean_kl_nats" in gate["measured"]


def _last(found: Results, key: str) -> float | None:
    values = [row[key] for row in found.metrics if key in row]
    return values[-1] if values else None


def _lacks_training(plan: Plan) -> Lack | None:
    return None if plan.train is not None else ("nothing is trained.", "Add train to the stages.")


def _lacks_eval_loss(plan: Plan) -> Lack | None:
    measured = plan.train is not None and plan.train.train.eval_steps is not None
    if measured or _compares_models(plan):
        return None
    added = "train and eval" if plan.train is None else "eval"
    fix = f"Add {added} to the stages, or set train.eval_steps."
    return "no loss on held-out rows is measured of a trained model.", fix


def _lacks_answers(plan: Plan) -> Lack | None:
    if plan.train is not None and plan.train.train.generate_rows:
        return None
    if not _compares_models(plan):
        return "no trained model answers questions.", "Add train and eval to the stages."
    if not any(step.eval.generate_rows for step in _steps(plan, EvalStep)):
        return "it is measured on generated answers.", "Set eval.generate_rows=50, for instance."
    return None


def _lacks_gguf(plan: Plan) -> Lack | None:
    if any(step.gguf.types for step in _steps(plan, ExportStep)):
        return None
    return "no GGUF file of the model is written.", "Add export to the stages, and set export.gguf.types."


def _lacks_divergence(plan: Plan) -> Lack | None:
    if any(step.gguf_types for step in _steps(plan, VerifyStep)):
        return None
    fix = "Add export and verify to the stages, set export.gguf.types, and leave verify.level at quick or full."
    return "no GGUF file is compared with the model.", fix


def _compares_models(plan: Plan) -> bool:
    """Says whether a trained model is evaluated, and not the base model alone."""
    return any(step.adapter is not None or step.tuned is not None for step in _steps(plan, EvalStep))


def _steps(plan: Plan, kind: type[_Step]) -> list[_Step]:
    return [step for step in plan.steps if isinstance(step, kind)]


@dataclass(frozen=True, slots=True)
class _Measure:
    read: Callable[[Results], float | None]
    better: Better
    lack: Callable[[Plan], Lack | None]


MEASURES: dict[str, _Measure] = {
    "eval_loss": _Measure(_eval_loss, "lower", _lacks_eval_loss),
    "train_loss": _Measure(_train_loss, "lower", _lacks_training),
    "rougeL": _Measure(_rouge, "higher", _lacks_answers),
    "bleu4": _Measure(_bleu, "higher", _lacks_answers),
    "tokens_per_second": _Measure(_tokens_per_second, "higher", _lacks_training),
    "gguf_bytes": _Measure(_gguf_bytes, "lower", _lacks_gguf),
    "quantisation_kl": _Measure(_quantisation_kl, "lower", _lacks_divergence),
}
"""By the name that `sweep.metric` gives; the smallest GGUF file and the largest divergence count."""
