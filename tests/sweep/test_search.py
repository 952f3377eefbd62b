"""A search goes on from its storage, whoever was killed, and several processes share it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from tests.conftest import ROOT
from tunerun.config.schema import OptunaConfig
from tunerun.errors import UserError
from tunerun.sweep.search import Asked, Search
from tunerun.sweep.space import Axis
from tunerun.sweep.trials import Outcome, Trial

RATE = Axis(key="train.learning_rate", low=1e-5, high=1e-1, log=True)
RANK = Axis(key="method.rank", low=2, high=64, integer=True)
KIND = Axis(key="method", points=("lora", "dora"))


def asked(trials: int, *axes: Axis, metrics: tuple[str, ...] = ("eval_loss",), seed: int = 0) -> Asked:
    return Asked(axes=axes or (RATE, RANK, KIND), fixed=("+recipe=x",), metrics=metrics, trials=trials, seed=seed)


def opened(folder: Path, wanted: Asked, **settings: object) -> Search:
    search = Search(wanted, OptunaConfig(**settings), folder)
    search.start()
    return search


def outcome(trial: Trial, status: str = "done", **metrics: float) -> Outcome:
    return Outcome(
        trial=trial.number, parameters=trial.parameters, status=status, exit_code=0, seconds=1.0, metrics=metrics
    )


def loss(trial: Trial) -> float:
    """Lowest at a learning rate of 1e-3."""
    import math

    return (math.log10(float(trial.parameters["train.learning_rate"])) + 3) ** 2


def finish(search: Search, measure: Callable[[Trial], float] = loss) -> list[Trial]:
    found = []
    while (trial := search.next()) is not None:
        search.ended(trial, outcome(trial, eval_loss=measure(trial)))
        found.append(trial)
    return found


def test_a_trial_is_a_point_that_composes(tmp_path):
    (trial,) = finish(opened(tmp_path, asked(1)))
    assert trial.number == 0
    assert trial.point[0] == "+recipe=x"
    assert set(trial.parameters) == {"train.learning_rate", "method.rank", "method"}
    assert 1e-5 <= float(trial.parameters["train.learning_rate"]) <= 1e-1
    assert 2 <= int(trial.parameters["method.rank"]) <= 64
    assert trial.parameters["method"] in ("lora", "dora")


def test_what_is_checked_first_has_every_choice_and_both_ends():
    samples = Search(asked(1), OptunaConfig(), Path("nowhere")).samples()
    assert [trial.varied for trial in samples] == [
        ("train.learning_rate=1e-05", "method.rank=2", "method=lora"),
        ("train.learning_rate=0.1", "method.rank=2", "method=lora"),
        ("train.learning_rate=1e-05", "method.rank=64", "method=lora"),
        ("train.learning_rate=1e-05", "method.rank=2", "method=dora"),
    ]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random"])
def test_a_search_that_is_stopped_proposes_what_it_would_have(tmp_path, sampler):
    whole = finish(opened(tmp_path / "whole", asked(16), sampler=sampler, startup_trials=4))
    halves = []
    for _ in range(4):
        search = opened(tmp_path / "halves", asked(16), sampler=sampler, startup_trials=4)
        for _ in range(4):
            trial = search.next()
            search.ended(trial, outcome(trial, eval_loss=loss(trial)))
            halves.append(trial)
    assert halves == whole
    assert opened(tmp_path / "halves", asked(16), sampler=sampler, startup_trials=4).next() is None


def test_tpe_looks_where_the_loss_is_low(tmp_path):
    trials = finish(opened(tmp_path, asked(30, RATE), startup_trials=8))
    late, early = [loss(trial) for trial in trials[-8:]], [loss(trial) for trial in trials[:8]]
    assert sorted(late)[4] < sorted(early)[4] / 2


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random"])
def test_the_searchs_own_seed_goes_before_the_runs(tmp_path, sampler):
    rank = Axis(key="method.rank", low=1, high=16, points=tuple(map(str, range(1, 17))), integer=True, step=1)
    seeds, proposed = [(0, None), (1, None), (0, 1), (1, 0)], []
    for run, own in seeds:
        search = opened(tmp_path / f"{run}-{own}", asked(5, rank, seed=run), sampler=sampler, seed=own)
        proposed.append([trial.varied for trial in finish(search, lambda trial: 1.0)])
    assert proposed[0] == proposed[3] != proposed[1] == proposed[2]


def test_a_grid_takes_every_point_once_whatever_the_number_of_trials(tmp_path):
    rank = Axis(key="method.rank", points=("4", "8", "12"), low=4, high=12, step=4, integer=True)
    search = opened(tmp_path, asked(1, KIND, rank), sampler="grid")
    assert search.total == 6
    assert {trial.varied for trial in finish(search, lambda trial: 1.0)} == {
        (f"method={kind}", f"method.rank={rank}") for kind in ("lora", "dora") for rank in (4, 8, 12)
    }


def test_a_running_trial_is_gone_on_with(tmp_path):
    search = opened(tmp_path, asked(2))
    first = search.next()
    assert opened(tmp_path, asked(2)).next() == first
    stopped = opened(tmp_path, asked(2))
    trial = stopped.next()
    stopped.ended(trial, outcome(trial, "preempted"))
    assert finish(opened(tmp_path, asked(2)))[0] == first


def test_failed_trials_count_and_are_not_tried_again(tmp_path):
    search = opened(tmp_path, asked(2))
    search.ended(failed := search.next(), outcome(failed, "failed", eval_loss=1.0))
    search.ended(unmeasured := search.next(), outcome(unmeasured))
    assert opened(tmp_path, asked(2)).next() is None
    assert [row.status for row in search.known()] == ["failed", "done"]


def test_halving_ends_the_worse_half_at_the_first_measurement(tmp_path):
    search = opened(tmp_path, asked(4), pruner="asha", reduction_factor=2)
    ended = []
    for first_loss in (2.0, 3.0, 1.0, 4.0):
        trial = search.next()
        goes_on = search.goes_on(trial, 1, first_loss)
        ended.append(not goes_on)
        search.ended(trial, outcome(trial, "done" if goes_on else "pruned", eval_loss=first_loss))
    assert ended == [False, True, False, True]
    assert [row.status for row in search.known()] == ["done", "pruned", "done", "pruned"]


def test_the_median_ends_what_is_worse_than_half(tmp_path):
    search = opened(tmp_path, asked(4), pruner="median", startup_trials=2, first_eval=2)
    answers = []
    for first_loss in (1.0, 2.0, 3.0, 0.5):
        trial = search.next()
        answers.append([search.goes_on(trial, evals, first_loss) for evals in (1, 2)])
        search.ended(trial, outcome(trial, "done" if answers[-1][1] else "pruned", eval_loss=first_loss))
    assert answers == [[True, True], [True, True], [True, False], [True, True]]


def test_several_metrics_are_searched_together(tmp_path):
    search = opened(tmp_path, asked(3, metrics=("eval_loss", "tokens_per_second")))
    for speed in (1.0, 2.0, 3.0):
        trial = search.next()
        search.ended(trial, outcome(trial, eval_loss=loss(trial), tokens_per_second=speed))
    assert len(search.known()) == 3


def test_the_key_that_decides_is_the_important_one(tmp_path):
    search = opened(tmp_path, asked(24, RATE, RANK), sampler="random")
    finish(search)
    found = search.importances(search.known(), "eval_loss").shares
    assert found["train.learning_rate"] > 0.9
    assert sum(found.values()) == pytest.approx(1.0)


def test_a_search_of_a_few_trials_says_that_it_cannot_tell(tmp_path):
    search = opened(tmp_path, asked(3, RATE, RANK))
    finish(search)
    assert search.importances(search.known(), "eval_loss").lack == "only 3 trials have it, and 4 are needed"


@pytest.mark.parametrize(
    ("settings", "wanted", "where"),
    [
        ({"pruner": "asha"}, asked(1, metrics=("train_loss",)), "hydra.sweeper.pruner"),
        ({"pruner": "asha"}, asked(1, metrics=("eval_loss", "gguf_bytes")), "hydra.sweeper.pruner"),
        ({"sampler": "cmaes"}, asked(1, metrics=("eval_loss", "gguf_bytes")), "hydra.sweeper.sampler"),
        ({"sampler": "cmaes"}, asked(1, KIND), "hydra.sweeper.sampler"),
        ({"sampler": "grid"}, asked(1, RATE), "train.learning_rate"),
        ({"reduction_factor": 1}, asked(1), "hydra.sweeper.reduction_factor"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, wanted, where):
    with pytest.raises(UserError) as caught:
        Search(wanted, OptunaConfig(**settings), Path("nowhere"))
    assert caught.value.problems[0].where == where


def test_another_search_of_the_same_name_is_refused(tmp_path):
    settings = {"storage": f"sqlite:///{tmp_path}/search.db", "study": "ours"}
    opened(tmp_path / "one", asked(2), **settings)
    with pytest.raises(UserError, match="its axes differ"):
        opened(tmp_path / "two", asked(2, RATE), **settings)
    with pytest.raises(UserError, match="cannot be opened"):
        opened(tmp_path / "two", asked(2), storage="sqlite:////no/such/folder/x.db")


WORKER = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from tests.sweep.test_search import asked, loss, opened, outcome
search = opened(Path(sys.argv[1]), asked(int(sys.argv[3])), storage=sys.argv[2], study="ours")
print("open", flush=True)
sys.stdin.readline()
while (trial := search.next()) is not None:
    print(json.dumps([trial.number, list(trial.varied)]), flush=True)
    time.sleep(0.02)
    search.ended(trial, outcome(trial, eval_loss=loss(trial)))
"""


def worker(folder: Path, storage: str, trials: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    argv = [sys.executable, "-c", WORKER, str(folder), storage, str(trials), str(ROOT)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_two_processes_share_a_search_and_one_is_killed(tmp_path, kind):
    storage = f"sqlite:///{tmp_path}/search.db" if kind == "sqlite" else f"{tmp_path}/search.journal"
    workers = [worker(tmp_path / name, storage, 12) for name in ("one", "two")]
    for process in workers:
        assert process.stdout.readline() == "open\n"
    for process in workers:
        process.stdin.write("go\n")
        process.stdin.flush()
    killed = [json.loads(workers[0].stdout.readline()) for _ in range(3)]
    workers[0].send_signal(signal.SIGKILL)
    killed += [json.loads(line) for line in workers[0].communicate()[0].splitlines()]
    others = [json.loads(line) for line in workers[1].communicate(timeout=60)[0].splitlines()]
    assert workers[1].returncode == 0
    told = [number for number, _ in killed + others]

    # The killed one goes on with the trial that it was at, told of or not; nobody else takes it.
    search = opened(tmp_path / "one", asked(12), storage=storage, study="ours")
    left = finish(search)
    assert len(set(told)) == len(told) >= 11
    assert [list(trial.varied) for trial in left] in ([killed[-1][1]], []) or len(told) == 11
    points = {tuple(varied) for _, varied in killed + others} | {trial.varied for trial in left}
    assert len(points) == 12
    assert search.next() is None
    assert len(search.known()) == 12
    assert {row.status for row in search.known()} == {"done"}


class _KilledError(BaseException):
    pass


@pytest.mark.parametrize("moment", ["suggest_float", "__init__"])
def test_a_trial_whose_process_is_killed_while_it_is_proposed_is_not_lost(tmp_path, monkeypatch, moment):
    shared = {"storage": f"{tmp_path}/search.journal", "study": "ours"}

    def die(*_: object, **__: object) -> None:
        raise _KilledError

    search = opened(tmp_path / "one", asked(3), **shared)
    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr(optuna.Trial, moment, die)
        search.next()
    # Others leave it a place.
    assert len(finish(opened(tmp_path / "two", asked(3), **shared))) == 2
    again = opened(tmp_path / "one", asked(3), **shared)
    assert len(finish(again)) == 1
    assert [row.status for row in again.known()] == ["done"] * 3
