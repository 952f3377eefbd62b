"""A search with Optuna, by ask and tell: its storage is what survives a kill and what several machines share."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tunerun.config import typed
from tunerun.config.schema import OptunaConfig
from tunerun.errors import Problem, UserError, require
from tunerun.sweep import measures
from tunerun.sweep.importance import Importances, too_few
from tunerun.sweep.space import Axis
from tunerun.sweep.storage import open_storage, telling
from tunerun.sweep.trials import Outcome, Trial

_P = ParamSpec("_P")
_R = TypeVar("_R")

_DIRECTIONS = {"lower": StudyDirection.MINIMIZE, "higher": StudyDirection.MAXIMIZE}

# What a trial in the storage says about itself.
_SWEEP = "sweep"
_OUTCOME = "outcome"
_SURPLUS = "surplus"
# What the search says: others can join it with the same only.
_ASKED = "asked"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a search looks for; the same for all who share it."""

    axes: tuple[Axis, ...]
    fixed: tuple[str, ...]
    """Overrides that all trials share."""
    metrics: tuple[str, ...]
    trials: int
    seed: int


def _telling(method: Callable[Concatenate[Search, _P], _R]) -> Callable[Concatenate[Search, _P], _R]:
    """Has a method tell of a storage that breaks while trials run."""

    @wraps(method)
    def told(search: Search, /, *args: _P.args, **named: _P.kwargs) -> _R:
        with search.telling():
            return method(search, *args, **named)

    return told


class Search:
    """The trials of a search, proposed one by one from what came of those before."""

    def __init__(self, asked: Asked, settings: OptunaConfig, sweep_dir: Path) -> None:
        """Checks what is asked; `start` opens the search, or joins it.

        Args:
            asked: What is looked for.
            settings: How.
            sweep_dir: The sweep's folder; its name tells who runs a trial.

        Raises:
            MissingExtra: CMA-ES is chosen and the package cmaes is not installed.
            UserError: The settings do not fit what is asked.
        """
        _refuse(asked, settings)
        if settings.sampler == "cmaes":
            require("cmaes", "sweep")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.axes: Sequence[Axis] = asked.axes
        self.fixed: Sequence[str] = asked.fixed
        self.settings: OptunaConfig | None = settings
        self._asked, self._chosen, self._sweep_dir = asked, settings, sweep_dir
        self.telling = partial(telling, settings.storage, sweep_dir)
        self._owner = sweep_dir.name
        self._private = settings.storage is None and settings.study is None
        self._distributions = {axis.key: _distribution(axis) for axis in asked.axes}
        self.total = math.prod(len(axis.points) for axis in asked.axes) if settings.sampler == "grid" else asked.trials
        self.is_complete, self.prunes = False, settings.pruner != "none"
        self._running: dict[int, optuna.Trial] = {}

    def samples(self) -> list[Trial]:
        """Returns a point for each choice and for both ends of each range, the other keys at their first value."""
        first = {axis.key: axis.ends[0] for axis in self._asked.axes}
        points = [first, *({**first, axis.key: end} for axis in self._asked.axes for end in axis.ends[1:])]
        return [self._trial(number, point) for number, point in enumerate(points)]

    def start(self, *, create: bool = True) -> None:
        """Opens the storage, and finds the trials that were running when the search was stopped.

        Args:
            create: Whether to begin a search where there is none.

        Raises:
            UserError: It cannot be opened, holds another search of this name, or none and none is to be begun.
        """
        self._storage = open_storage(self._chosen.storage, self._sweep_dir, create=create)
        name = self._chosen.study or self._sweep_dir.name
        self._study = _open(self._asked, self._chosen, self._storage, name, create=create)
        self._study_id = self._storage.get_study_id_from_name(name)
        self._left = [trial for trial in self._trials(TrialState.RUNNING) if self._is_mine(trial)]

    @_telling
    def next(self) -> Trial | None:
        """Returns the next trial: one that was running when the search was stopped, or a new one."""
        while self._left:
            frozen = self._left.pop(0)
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, frozen.number)
            trial = optuna.Trial(self._study, trial_id)
            if frozen.params.keys() == self._distributions.keys() and self._has_place(frozen.number):
                return self._begun(trial, frozen.params)
            # Killed while it was proposed, or before it was found to be one too many.
            self._set_aside(trial)
        if not self._has_place():
            return None
        trial = self._proposed()
        if self._has_place(trial.number):
            return self._begun(trial, trial.params)
        # Another process took the last place in the meantime.
        self._set_aside(trial)
        return None

    @_telling
    def goes_on(self, trial: Trial, evals: int, loss: float) -> bool:
        """Keeps a measurement, and says whether the pruner lets the trial go on."""
        running = self._running[trial.number]
        running.report(loss, evals)
        return not running.should_prune()

    @_telling
    def ended(self, trial: Trial, outcome: Outcome) -> None:
        """Keeps what came of a trial; one that was stopped by a signal stays open for a resume."""
        if outcome.status == "preempted":
            return
        running = self._running.pop(trial.number)
        running.set_user_attr(_OUTCOME, typed.plain(outcome))
        values = [outcome.metrics[name] for name in self._asked.metrics if name in outcome.metrics]
        if outcome.status == "pruned":
            self._study.tell(trial.number, state=TrialState.PRUNED)
        elif outcome.status in ("done", "skipped") and len(values) == len(self._asked.metrics):
            self._study.tell(trial.number, values)
        else:
            self._study.tell(trial.number, state=TrialState.FAIL)

    @_telling
    def known(self) -> list[Outcome]:
        """Returns what the storage remembers of all trials."""
        return [self._remembered(trial) for trial in self._trials() if _SURPLUS not in trial.user_attrs]

    @_telling
    def find(self, number: int) -> Trial | None:
        """Returns a trial of this sweep, or None when it is another process's."""
        trial = self._trials()[number]
        return self._trial(number, self._texts(trial.params)) if self._is_mine(trial) else None

    def importances(self, rows: Sequence[Outcome], metric: str) -> Importances:  # noqa: ARG002 (the storage has them)
        """Returns how much each key matters to the first metric.

        By PED-ANOVA (Watanabe et al. 2023): where the better trials lie, against where all lie.
        """
        if len(self._distributions) < 2:
            return Importances()
        if lack := too_few(len(self._trials(TrialState.COMPLETE))):
            return Importances(lack=lack)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(
                self._study,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
                target=lambda trial: trial.values[0],
            )
        shares = {key: value for key, value in found.items() if math.isfinite(value)}
        return Importances(shares=shares, method="PED-ANOVA: where the better trials lie, against all")

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _has_place(self, number: float = math.inf) -> bool:
        """Says whether a trial of this number is among as many as were asked for."""
        before = (trial.number < number and _SURPLUS not in trial.user_attrs for trial in self._trials())
        return sum(before) < self.total

    def _proposed(self) -> optuna.Trial:
        """Does what `Study.ask` does, but that the trial says whose it is from the first: a kill may be next."""
        mine = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={_SWEEP: self._owner})
        known = {trial.number for trial in self._trials()}
        trial = optuna.Trial(self._study, self._storage.create_new_trial(self._study_id, mine))
        if trial.number in known:
            raise ValueError(f"it holds less than before, so that trial {trial.number} would be run twice")
        for key, distribution in self._distributions.items():
            _suggest(trial, key, distribution)
        return trial

    def _begun(self, trial: optuna.Trial, params: Mapping[str, Any]) -> Trial:
        self._running[trial.number] = trial
        return self._trial(trial.number, self._texts(params))

    def _is_mine(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(_SWEEP)
        return owner == self._owner or (owner is None and self._private)

    def _set_aside(self, trial: optuna.Trial) -> None:
        trial.set_user_attr(_SURPLUS, True)
        self._study.tell(trial.number, state=TrialState.FAIL)

    def _trial(self, number: int, texts: Mapping[str, str]) -> Trial:
        varied = tuple(f"{key}={text}" for key, text in texts.items())
        return Trial(number=number, point=(*self._asked.fixed, *varied), varied=varied)

    def _texts(self, params: Mapping[str, Any]) -> dict[str, str]:
        return {
            axis.key: params[axis.key] if axis.low is None else axis.text(params[axis.key]) for axis in self._asked.axes
        }

    def _remembered(self, trial: FrozenTrial) -> Outcome:
        if _OUTCOME in trial.user_attrs:
            return Outcome(**trial.user_attrs[_OUTCOME])
        known = trial.params.keys() == self._distributions.keys()
        return Outcome(
            trial=trial.number,
            parameters=self._texts(trial.params) if known else {},
            status="running",
            exit_code=None,
            seconds=0.0,
            metrics={},
        )


def _open(asked: Asked, settings: OptunaConfig, storage: BaseStorage, name: str, *, create: bool) -> Study:
    seed = asked.seed if settings.seed is None else settings.seed
    if not create and name not in optuna.get_all_study_names(storage):
        what = f"{name} is not among the searches of {settings.storage or 'the journal of the sweep'}."
        raise UserError(Problem(where="hydra.sweeper.study", what=what, fix="Name the storage that the sweep had."))
    # Also one that is there is written to when it is created.
    begin: Callable[..., Study] = optuna.load_study
    if create:
        directions = [_DIRECTIONS[measures.better(metric)] for metric in asked.metrics]
        begin = partial(optuna.create_study, directions=directions, load_if_exists=True)
    sampler = _SeededByTrial(lambda number: _sampler(asked, settings, seed, number))
    study = begin(storage=storage, study_name=name, sampler=sampler, pruner=_pruner(settings))
    shared = {"axes": typed.plain(asked.axes), "fixed": sorted(asked.fixed), "metrics": list(asked.metrics)}
    wanted = json.loads(json.dumps(shared))
    if _ASKED not in study.user_attrs:
        # One that was killed had begun it, and no more.
        study.set_user_attr(_ASKED, wanted)
    elif study.user_attrs[_ASKED] != wanted:
        theirs = study.user_attrs[_ASKED]
        names = ", ".join(name for name in wanted if wanted[name] != theirs[name])
        what = f"{study.study_name} is another search: its {names} differ."
        raise UserError(Problem(where="hydra.sweeper.study", what=what, fix="Join it as it was started, or rename."))
    return study


def _refuse(asked: Asked, settings: OptunaConfig) -> None:
    problems: list[Problem] = []
    if not asked.axes:
        fix = "Write train.learning_rate=interval(1e-5,1e-3), or sweep.params in the recipe."
        problems.append(Problem(where="sweep.params", what="nothing is varied.", fix=fix))
    several = len(asked.metrics) > 1
    if settings.pruner != "none" and asked.metrics != ("eval_loss",):
        what = f"ends trials by eval_loss, and sweep.metric is {', '.join(asked.metrics)}."
        problems.append(Problem(where="hydra.sweeper.pruner", what=what, fix="Set sweep.metric=eval_loss, or none."))
    if settings.sampler == "cmaes" and several:
        what = "cmaes looks for one metric."
        problems.append(Problem(where="hydra.sweeper.sampler", what=what, fix="Choose tpe, or one sweep.metric."))
    if settings.sampler == "cmaes" and sum(axis.low is not None for axis in asked.axes) < 2:
        what = "cmaes needs two ranges of numbers at least."
        problems.append(Problem(where="hydra.sweeper.sampler", what=what, fix="Choose tpe."))
    if settings.sampler == "grid":
        problems += [
            Problem(where=axis.key, what="a grid needs values it can count.", fix="Give it a step, or choices.")
            for axis in asked.axes
            if not axis.points
        ]
    low = {"startup_trials": 1, "first_eval": 1, "reduction_factor": 2}
    problems += [
        Problem(where=f"hydra.sweeper.{name}", what=f"{getattr(settings, name)} is too small: at least {least}.")
        for name, least in low.items()
        if getattr(settings, name) < least
    ]
    if problems:
        raise UserError(problems)


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.low is None or axis.high is None:
        return CategoricalDistribution(axis.points)
    if axis.integer:
        step = 1 if axis.step is None else int(axis.step)
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log, step=step)
    return FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)


def _suggest(trial: optuna.Trial, key: str, distribution: BaseDistribution) -> None:
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(key, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    else:
        assert isinstance(distribution, FloatDistribution), "axes have no other"
        trial.suggest_float(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _sampler(asked: Asked, settings: OptunaConfig, search_seed: int, number: int) -> BaseSampler:
    if settings.sampler == "grid":
        # It decides the order of the points, which is one for all trials.
        return GridSampler({axis.key: _grid_values(axis) for axis in asked.axes}, seed=search_seed)
    seed = _seed(search_seed, number)
    if settings.sampler == "random":
        return RandomSampler(seed=seed)
    if settings.sampler == "tpe":
        return TPESampler(seed=seed, n_startup_trials=settings.startup_trials)
    return CmaEsSampler(
        seed=seed,
        n_startup_trials=settings.startup_trials,
        independent_sampler=RandomSampler(seed=seed),
        warn_independent_sampling=False,
    )


def _grid_values(axis: Axis) -> Sequence[Any]:
    if axis.low is None:
        return axis.points
    return [int(point) if axis.integer else float(point) for point in axis.points]


def _pruner(settings: OptunaConfig) -> BasePruner:
    if settings.pruner == "asha":
        return SuccessiveHalvingPruner(min_resource=settings.first_eval, reduction_factor=settings.reduction_factor)
    if settings.pruner == "hyperband":
        return HyperbandPruner(min_resource=settings.first_eval, reduction_factor=settings.reduction_factor)
    if settings.pruner == "median":
        return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.first_eval)
    return NopPruner()


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4])


class _SeededByTrial(BaseSampler):
    """Draws each trial with a seed of its own, whatever process asks.

    So processes that share a search do not propose the same, and a search that was stopped proposes what it would have.
    """

    def __init__(self, make: Callable[[int], BaseSampler]) -> None:
        self._make = make
        self._inner = make(0)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._inner = self._make(trial.number)
        self._inner.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        # After its last point a grid stops an optimisation of Optuna's own, of which there is none.
        if not isinstance(self._inner, GridSampler):
            self._inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self._inner.reseed_rng()
