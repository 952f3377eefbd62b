"""What trials are compared by: each measure is a number read from a run's files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, Literal

from tunerun.run.results import Results

Better = Literal["lower", "higher"]


def measure(found: Results) -> dict[str, float]:
    """Returns every measure that a run's files tell."""
    values = {name: read(found) for name, (read, _) in MEASURES.items()}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def better(name: str) -> Better:
    """Says which end of a measure is the good one."""
    return MEASURES[name][1]


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
    return None if scores is None else scores[name]


def _tokens_per_second(found: Results) -> float | None:
    speeds = [row["tokens_per_second"] for row in found.metrics if "tokens_per_second" in row]
    return median(speeds) if speeds else None


def _gguf_bytes(found: Results) -> float | None:
    sizes = [
        item.bytes for stage in found.record.stages.values() for item in stage.artifacts if item.path.endswith(".gguf")
    ]
    return float(min(sizes)) if sizes else None


def _quantisation_kl(found: Results) -> float | None:
    gates = found.verification["gates"] if found.verification is not None else []
    values = [gate["measured"]["mean_kl_nats"] for gate in gates if _is_quantisation(gate)]
    return max(values) if values else None


def _is_quantisation(gate: Mapping[str, Any]) -> bool:
    return str(gate["name"]).startswith("gguf_logits") and "mean_kl_nats" in gate["measured"]


def _last(found: Results, key: str) -> float | None:
    values = [row[key] for row in found.metrics if key in row]
    return values[-1] if values else None


MEASURES: dict[str, tuple[Callable[[Results], float | None], Better]] = {
    "eval_loss": (_eval_loss, "lower"),
    "train_loss": (_train_loss, "lower"),
    "rougeL": (_rouge, "higher"),
    "bleu4": (_bleu, "higher"),
    "tokens_per_second": (_tokens_per_second, "higher"),
    "gguf_bytes": (_gguf_bytes, "lower"),
    "quantisation_kl": (_quantisation_kl, "lower"),
}
"""By the name that `sweep.metric` gives; the smallest GGUF file and the largest divergence count."""
