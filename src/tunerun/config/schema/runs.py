"""Keys of the sections `sweep` and `lock`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Measure = Literal["eval_loss", "train_loss", "rougeL", "bleu4", "tokens_per_second", "gguf_bytes", "quantisation_kl"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterConfig:
    """Where one key is searched: between two numbers, or among choices."""

    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value, which is tried too."""
    log: bool = False
    """Whether the values are spread evenly by their order of magnitude."""
    step: float | None = None
    """Distance between the values; null takes every number, or every whole number for a key that holds one."""
    choices: tuple[Any, ...] = ()
    """Values instead of a range: numbers, texts, lists, or options of a group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """The trials of `tunerun -m`, and how they are compared."""

    metric: tuple[Measure, ...] = ("eval_loss",)
    """What ranks the trials: the loss on held-out rows after training, the last training loss, ROUGE-L or BLEU-4 of
    generated answers, the median speed, the size of the smallest GGUF file, or the largest divergence of a GGUF file
    from the merged model. With several, trials that no other beats in all of them come first. One that is chosen, or
    searched by, must come from the trials' stages."""
    params: Mapping[str, ParameterConfig] = field(default_factory=dict)
    """Keys that are varied, by their dotted name or the name of a group; one that is set on the command line is not."""
    trials: int = 20
    """Number of trials of a search (`hydra/sweeper=tunerun_optuna`); a grid has as many as it has points."""
    jobs: int = 1
    """Trials that run at a time: each on GPUs of its own, or with its share of the cores; under Slurm, tasks of one
    array."""
    finish_best: bool = False
    """Run the stages after eval for the best trial only; under Slurm, `tunerun resume` of the sweep queues them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptunaConfig:
    """How `hydra/sweeper=tunerun_optuna` searches."""

    sampler: Literal["tpe", "cmaes", "random", "grid"] = "tpe"
    """What proposes trials: a tree-structured Parzen estimator, CMA-ES (needs the package cmaes), chance, or every
    point once."""
    pruner: Literal["none", "asha", "hyperband", "median"] = "none"
    """What ends a trial early by the losses that it measures every `train.eval_steps`, which must be set: successive
    halving, several of these that begin at different times, or whether it is worse than half of the trials were."""
    startup_trials: int = 10
    """Trials proposed by chance before tpe and cmaes learn from them; finished trials that median needs to compare."""
    first_eval: int = 1
    """Number of the measurement that may end a trial, from 1."""
    reduction_factor: int = 3
    """With asha and hyperband, one of so many trials goes on at each comparison, >= 2."""
    seed: int | None = None
    """Decides what is proposed; null takes the run's seed."""
    storage: str | None = None
    """Where trials are kept: a data base (`sqlite:////shared/search.db`) or a file whose name ends in `.journal`, which
    several machines may share; null takes a journal in the sweep's folder."""
    study: str | None = None
    """Name of the search in the storage, which others join by it; null takes the sweep's id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LockConfig:
    """What a run has to find as it was; `tunerun lock RUN` writes these."""

    model_sha256: str | None = None
    """Hash of the base model's files."""
    teacher_sha256: str | None = None
    """Hash of the files of the teacher that distill imitates."""
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    """Hash of each local file or folder of data, by its path."""
    files_sha256: Mapping[str, str] = field(default_factory=dict)
    """Hash of each other local file or folder that was read, by its path: an adapter that is there already, a chat
    template, a config of DeepSpeed, tasks of the evaluation."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Version of each package that can change a result."""
