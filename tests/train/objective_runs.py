"""Runs of every objective on a tiny model: rows, pairs or labelled rows, and the steps to work on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny import random_samples, tiny_qwen2
from tests.train.runs import make_run, train_step
from tunerun import artifacts
from tunerun.base_model import BaseModel, read_base, write_teacher
from tunerun.config.schema import MethodConfig, ObjectiveConfig
from tunerun.formats.pairs import finish_pairs
from tunerun.formats.tokens import TokenWriter
from tunerun.plan.steps import TrainStep
from tunerun.train import stage
from tunerun.train.job import Job
from tunerun.train.ranks import Ranks

Pair = tuple[list[int], list[int], list[int]]
"""Prompt, chosen and rejected answer."""

OBJECTIVES = {
    "sft": ObjectiveConfig(),
    "dpo": ObjectiveConfig(kind="dpo"),
    "dpo-smoothed": ObjectiveConfig(kind="dpo", label_smoothing=0.1),
    "hinge": ObjectiveConfig(kind="dpo", loss="hinge"),
    "ipo": ObjectiveConfig(kind="dpo", loss="ipo"),
    "orpo": ObjectiveConfig(kind="orpo"),
    "simpo": ObjectiveConfig(kind="simpo", beta=2.0),
    "kto": ObjectiveConfig(kind="kto", undesirable_weight=1.5),
    "reward": ObjectiveConfig(kind="reward"),
    "distill": ObjectiveConfig(kind="distill", teacher="org/teacher", temperature=2.0),
    "distill-reverse": ObjectiveConfig(kind="distill", teacher="org/teacher", divergence="reverse_kl", temperature=1.5),
}


def random_pairs(count: int, *, seed: int = 0, prompt: int | None = None) -> list[Pair]:
    """Returns pairs of answers of 3 to 10 tokens to prompts of 3 to 8 tokens, or of `prompt` tokens."""
    generator = np.random.default_rng(seed)

    def tokens(least: int, most: int) -> list[int]:
        found: list[int] = generator.integers(0, 317, int(generator.integers(least, most + 1))).tolist()
        return found

    return [(tokens(prompt or 3, prompt or 8), tokens(3, 10), tokens(3, 10)) for _ in range(count)]


def random_labels(count: int) -> list[bool]:
    """Returns labels of which a third are undesirable."""
    return [index % 3 != 1 for index in range(count)]


def write_pairs(folder: Path, pairs: list[Pair]) -> None:
    """Writes a store of pairs whose answers are trained."""
    made = []
    for side, name in ((1, "chosen"), (2, "rejected")):
        with TokenWriter(folder / name) as writer:
            for pair in pairs:
                writer.add(_sample(pair[0], pair[side]))
            made.append(_finish(writer, "dpo"))
    finish_pairs(folder, *made)


def write_labelled(folder: Path, pairs: list[Pair], labels: list[bool]) -> None:
    """Writes a labelled store of the prompts and their chosen answers."""
    with TokenWriter(folder, labelled=True) as writer:
        for (prompt, answer, _), label in zip(pairs, labels, strict=True):
            writer.add(_sample(prompt, answer), label=label)
        _finish(writer, "kto")


def write_rows(folder: Path, samples: list[Any], *, size: int = 1) -> None:
    """Writes a store of single rows of `size` samples each."""
    with TokenWriter(folder) as writer:
        for start in range(0, len(samples), size):
            writer.add(*[(np.array(tokens), np.array(flags)) for tokens, flags in samples[start : start + size]])
        writer.finish(objective="sft", tokenizer_sha256="0", template_sha256=None, max_length=256, packed=size > 1)


def make_objective_run(out: Path, objective: ObjectiveConfig, *, rows: int = 10, held_out: int = 0) -> Path:
    """Makes a run directory with what an objective needs."""
    make_run(out, rows=1)
    for folder, count, seed in ((artifacts.DATA, rows, 0), (artifacts.EVAL_DATA, held_out, 1)):
        if count and objective.kind == "kto":
            write_labelled(out / folder, random_pairs(count, seed=seed), random_labels(count))
        elif count and objective.kind in ("dpo", "orpo", "simpo", "reward"):
            write_pairs(out / folder, random_pairs(count, seed=seed))
        elif count:
            write_rows(out / folder, random_samples(count, seed=seed))
    if objective.kind == "distill":
        folder = tiny_qwen2(out / "teacher", seed=5, num_hidden_layers=3)
        write_teacher(out, BaseModel(folder=folder, path="org/teacher", revision=None, sha256="5"))
    return out


def objective_step(objective: ObjectiveConfig, method: MethodConfig, **values: Any) -> TrainStep:
    """Returns a step as `runs.train_step` does, of an objective."""
    return replace(train_step(method, **values), objective=objective)


def objective_job(out: Path, step: TrainStep) -> Job:
    """Prepares a training."""
    job, _ = stage._prepare(step, read_base(out), out, {"objective": step.objective.kind}, None, Ranks())
    return job


def at_a_time(job: Job, **sizes: int) -> Job:
    """Returns a training that computes other numbers of rows at a time."""
    return replace(job, fitting=replace(job.fitting, now=replace(job.fitting.now, **sizes)))


def _sample(prompt: list[int], answer: list[int]) -> tuple[Any, Any]:
    return np.array(prompt + answer), np.array([0] * len(prompt) + [1] * len(answer))


def _finish(writer: TokenWriter, objective: str) -> Any:
    return writer.finish(objective=objective, tokenizer_sha256="0", template_sha256=None, max_length=256, packed=False)
