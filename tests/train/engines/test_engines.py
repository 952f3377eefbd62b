"""Two real processes under each engine, compared with one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import random_samples, write_store
from tests.train.engines.group import ENGINE, Training, placed, train
from tests.train.objective_runs import make_objective_run, objective_step
from tests.train.runs import FULL, Killed, kill_before, losses, make_run, metrics, nan_in_step, train_step
from tunerun import artifacts
from tunerun.config.schema import EvalConfig, MethodConfig, ObjectiveConfig
from tunerun.train import stage

STEPS = 20
ROWS = 21
"""The last global batch of an epoch has 5 rows: 2 + 1 for the first rank and 2 for the second."""
LORA = MethodConfig(rank=4, alpha=8.0)
DROPOUT = replace(LORA, dropout=0.1)
QLORA = replace(LORA, kind="qlora")
WRAPPERS = {
    "ddp": "torch.nn.parallel.distributed.DistributedDataParallel",
    "zero1": "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer",
    "zero2": "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer",
    "zero3": "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3",
    "fsdp2": "torch.distributed.fsdp.FSDPModule",
}
OBJECTIVES = {"dpo": ObjectiveConfig(kind="dpo"), "kto": ObjectiveConfig(kind="kto")}
PREFERENCES = ("ddp", "zero2")


def _made(out: Path) -> Path:
    make_run(out, rows=ROWS)
    write_store(out / artifacts.EVAL_DATA, [[sample] for sample in random_samples(5, seed=9)])
    return out


def _step(method: MethodConfig, **train: Any) -> Any:
    return train_step(method, micro_batch_size=2, **{"max_steps": STEPS, "learning_rate": 5e-3, **train})


def _observed(step: Any) -> Any:
    """Measures the held-out rows, answers them and a question at steps 10 and 20."""
    watched = replace(step.train, eval_steps=10, checkpoint_steps=10, generate_rows=5)
    return replace(step, train=watched, eval=EvalConfig(prompts=("Who are you?",), max_new_tokens=5, batch_size=2))


def _weights(out: Path) -> dict[str, torch.Tensor]:
    adapter = out / artifacts.ADAPTER / artifacts.ADAPTER_WEIGHTS
    return load_file(adapter if adapter.is_file() else out / artifacts.MERGED / "model.safetensors")


# The checkpoint is that of step 2, and step 4 fails.
GOES_BACK: dict[str, Any] = {"on_nonfinite": "rollback", "checkpoint_steps": 2}


def _furthest(one: Path, other: Path) -> float:
    first, second = _weights(one), _weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


def _differ(one: Path, other: Path) -> float:
    first, second = losses(one), losses(other)
    assert [step for step, _ in first] == [step for step, _ in second]
    return max(abs(first_loss - loss) for (_, first_loss), (_, loss) in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same trainings in one process, by name."""
    folder = tmp_path_factory.mktemp("alone")
    for name, method in (("full", FULL), ("lora", LORA)):
        stage.run(_observed(_step(method)), _made(folder / name))
    for name, objective in OBJECTIVES.items():
        out = make_objective_run(folder / name, objective, rows=ROWS)
        stage.run(objective_step(objective, LORA, max_steps=6, micro_batch_size=2), out)
    stage.run(_step(QLORA, max_steps=6), _made(folder / "qlora"))
    with nan_in_step(3):
        stage.run(_step(LORA, max_steps=6, on_nonfinite="skip"), _made(folder / "nan"))
    with nan_in_step(3):
        stage.run(_step(FULL, max_steps=6, **GOES_BACK), _made(folder / "back"))
    return folder


# What zero1 does, zero2 does too.
@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name == "zero1" else ()) for name in WRAPPERS],
)
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Strategy and folder of all that two processes did under it."""
    strategy = request.param
    folder = tmp_path_factory.mktemp(strategy)
    trainings = [
        Training(step=placed(_observed(_step(method)), strategy, 2), out=_made(folder / name))
        for name, method in (("full", FULL), ("lora", LORA))
    ]
    for name, method in (("full", FULL), ("lora", DROPOUT)):
        step = placed(_step(method, max_steps=6, checkpoint_steps=2), strategy, 2)
        trainings.append(Training(step=step, out=_made(folder / f"straight-{name}")))
        trainings.append(Training(step=step, out=_made(folder / f"stopped-{name}"), stop_before=3))
        trainings.append(Training(step=step, out=folder / f"stopped-{name}"))
    if strategy in PREFERENCES:
        for name, objective in OBJECTIVES.items():
            step = objective_step(objective, LORA, max_steps=6, micro_batch_size=2)
            out = make_objective_run(folder / name, objective, rows=ROWS)
            trainings.append(Training(step=placed(step, strategy, 2), out=out))
    if strategy == "ddp":
        trainings.append(Training(step=placed(_step(QLORA, max_steps=6), strategy, 2), out=_made(folder / "qlora")))
    skipping = placed(_step(LORA, max_steps=6, on_nonfinite="skip"), strategy, 2)
    trainings.append(Training(step=skipping, out=_made(folder / "nan"), nan_step=3))
    going_back = placed(_step(FULL, max_steps=6, **GOES_BACK), strategy, 2)
    trainings.append(Training(step=going_back, out=_made(folder / "back"), nan_step=3))
    moved = _moved(folder)
    trainings.append(Training(step=placed(moved, strategy, 2), out=folder / "moved", stop_before=4))
    train(trainings, folder / "group")
    stage.run(moved, folder / "moved")
    return strategy, folder


def _moved(folder: Path) -> Any:
    """Trains two steps in one process; the others are to go on."""
    step = _step(LORA, max_steps=6, checkpoint_steps=2)
    with kill_before(2), pytest.raises(Killed):
        stage.run(step, _made(folder / "moved"))
    shutil.copytree(folder / "moved", folder / "stayed")
    stage.run(step, folder / "stayed")
    return step


def test_the_engine_that_was_asked_for_is_the_one_that_runs(together: tuple[str, Path]) -> None:
    strategy, folder = together
    assert WRAPPERS[strategy] in (folder / "full" / ENGINE).read_text().splitlines()


@pytest.mark.parametrize("name", ["full", "lora"])
def test_twenty_steps_have_the_losses_and_weights_of_one_process(
    alone: Path, together: tuple[str, Path], name: str
) -> None:
    _, folder = together
    assert len(losses(folder / name)) == STEPS
    assert _differ(folder / name, alone / name) < 1e-5
    assert _furthest(folder / name, alone / name) < 1e-4
    assert any(
        bool(weight.any()) for key, weight in _weights(folder / name).items() if "lora_B" in key or name == "full"
    )


@pytest.mark.parametrize("name", ["full", "lora"])
def test_held_out_rows_and_answers_are_those_of_one_process(alone: Path, together: tuple[str, Path], name: str) -> None:
    _, folder = together
    measured, wanted = (
        [row["eval_loss"] for row in metrics(out / name) if "eval_loss" in row] for out in (folder, alone)
    )
    assert len(measured) == 2 and measured == pytest.approx(wanted, abs=1e-5)
    answers = [(out / name / "checkpoints/step-10/answers.jsonl").read_text() for out in (folder, alone)]
    assert answers[0] == answers[1]
    scored, wanted = (
        [(row["eval_rouge1"], row["eval_bleu4"]) for row in metrics(out / name) if "eval_rouge1" in row]
        for out in (folder, alone)
    )
    assert len(scored) == 2 and scored == wanted and scored[1][0] > 0


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_stopped_training_goes_on_to_the_same_bits(together: tuple[str, Path], name: str) -> None:
    _, folder = together
    straight, stopped = folder / f"straight-{name}", folder / f"stopped-{name}"
    assert losses(stopped) == losses(straight)
    assert _furthest(stopped, straight) == 0.0


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_preferences_are_learned_as_in_one_process(alone: Path, together: tuple[str, Path], name: str) -> None:
    strategy, folder = together
    if strategy not in PREFERENCES:
        pytest.skip("preferences are tried under ddp and zero2")
    assert _differ(folder / name, alone / name) < 1e-5
    assert _furthest(folder / name, alone / name) < 1e-4


def test_a_loss_that_is_nan_on_one_rank_is_passed_over_by_all(alone: Path, together: tuple[str, Path]) -> None:
    _, folder = together
    assert [step for step, _ in losses(folder / "nan")] == [1, 2, 3, 5, 6]
    assert _differ(folder / "nan", alone / "nan") < 1e-5
    assert _furthest(folder / "nan", alone / "nan") < 1e-4


def test_a_return_to_a_checkpoint_takes_the_weights_that_are_computed_with(
    together: tuple[str, Path], alone: Path
) -> None:
    _, folder = together
    assert [step for step, _ in losses(folder / "back")] == [1, 2, 3, 5, 6]
    assert _differ(folder / "back", alone / "back") < 1e-5
    assert _furthest(folder / "back", alone / "back") < 1e-4
    told = (folder / "group/rank-0.log").read_text()
    assert "warning: step 4: the loss is nan. It was computed from samples" in told


def test_a_quantised_base_is_trained_on_as_in_one_process(alone: Path, together: tuple[str, Path]) -> None:
    strategy, folder = together
    if strategy != "ddp":
        pytest.skip("qlora is tried under ddp")
    assert _differ(folder / "qlora", alone / "qlora") < 1e-5
    assert _furthest(folder / "qlora", alone / "qlora") < 1e-4


def test_a_training_may_go_from_one_process_to_two_and_back(together: tuple[str, Path]) -> None:
    _, folder = together
    assert _differ(folder / "moved", folder / "stayed") < 1e-4
    assert _furthest(folder / "moved", folder / "stayed") < 1e-4


@pytest.mark.parametrize(
    ("strategy", "method"),
    [
        ("ddp", FULL),
        pytest.param("ddp", DROPOUT, marks=pytest.mark.slow),
        *(
            pytest.param(name, method, marks=pytest.mark.slow)
            for name in (*WRAPPERS,)[1:]
            for method in (FULL, DROPOUT)
        ),
    ],
)
def test_three_processes_go_on_to_the_same_bits(tmp_path: Path, strategy: str, method: MethodConfig) -> None:
    # Two numbers have one sum; that of three depends on who is added first.
    step = placed(_step(method, max_steps=4, checkpoint_steps=2), strategy, 3)
    straight, stopped = _made(tmp_path / "straight"), _made(tmp_path / "stopped")
    train(
        [
            Training(step=step, out=straight),
            Training(step=step, out=stopped, stop_before=2),
            Training(step=step, out=stopped),
        ],
        tmp_path / "group",
    )
    assert losses(stopped) == losses(straight)
    assert _furthest(stopped, straight) == 0.0
