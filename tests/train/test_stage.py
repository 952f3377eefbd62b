from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.tiny import CHATML, random_samples, tiny_qwen2, write_store
from tests.train.runs import FULL, Killed, before_step, kill_before, losses, make_run, metrics, train_step
from tunerun import artifacts
from tunerun.config.schema import ModelConfig, TrackConfig
from tunerun.errors import Preempted, StageError, UserError
from tunerun.formats import checkpoints
from tunerun.models import adapters, load
from tunerun.plan import steps
from tunerun.plan.placement import Placement
from tunerun.plan.steps import TrainStep
from tunerun.train import checkpoint, stage
from tunerun.train.ranks import connected
from tunerun.train.signals import stop_requests
from tunerun.train.stage import run

ROOT = Path(__file__).resolve().parents[2]


def test_the_same_step_twice_gives_the_same_bits(tmp_path: Path) -> None:
    made = [run(train_step(threads=2), make_run(tmp_path / name))[0] for name in ("a", "b")]
    assert made[0] == made[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_writes_a_checkpoint_within_one_step(tmp_path: Path, number: signal.Signals) -> None:
    out, before = make_run(tmp_path / "run"), signal.getsignal(number)
    stop = before_step(1, lambda: os.kill(os.getpid(), number))
    with stop, pytest.raises(Preempted, match=f"stopped by {number.name} after step 2 of 6"):
        run(train_step(), out)
    assert signal.getsignal(number) is before
    assert not (out / artifacts.ADAPTER).exists()
    assert [path.name for path in (out / artifacts.CHECKPOINTS).iterdir()] == ["step-2"]
    assert run(train_step(), out)[0] == run(train_step(), make_run(tmp_path / "straight"))[0]


def test_how_often_checkpoints_are_written_is_no_part_of_what_is_trained(tmp_path: Path) -> None:
    out = make_run(tmp_path / "killed")
    with kill_before(3), pytest.raises(Killed):
        run(train_step(checkpoint_steps=1), out)
    assert run(train_step(), out)[0] == run(train_step(), make_run(tmp_path / "straight"))[0]


def test_another_config_or_other_data_do_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    with kill_before(3), pytest.raises(Killed):
        run(train_step(checkpoint_steps=2), out)
    with pytest.raises(UserError) as caught:
        run(train_step(checkpoint_steps=2, learning_rate=1e-3, weight_decay=0.1), out)
    assert [problem.where for problem in caught.value.problems] == ["train.learning_rate", "train.weight_decay"]
    write_store(out / "data", [[sample] for sample in random_samples(20, seed=5)])
    with pytest.raises(UserError, match=r"data \(content\)"):
        run(train_step(checkpoint_steps=2), out)


def test_an_adapter_is_continued(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    run(train_step(), first)
    model = ModelConfig(path="org/tiny", adapter=str(first / artifacts.ADAPTER))
    run(train_step(model=model), second)
    assert losses(second)[0][1] < losses(first)[0][1]


def test_full_training_publishes_a_complete_model_with_the_chosen_template(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    (out / "mine.jinja").write_text(CHATML.replace("assistant", "helper"))
    run(train_step(FULL, model=ModelConfig(path="org/tiny", chat_template=str(out / "mine.jinja"))), out)
    merged = out / artifacts.MERGED
    assert "helper" in (merged / "chat_template.jinja").read_text()
    assert "chat_template" not in json.loads((merged / "tokenizer_config.json").read_text())
    tuned = load.load_model(merged, dtype=torch.float32, device="cpu")
    base = load.load_model(out / "base", dtype=torch.float32, device="cpu")
    assert not torch.equal(tuned.get_input_embeddings().weight, base.get_input_embeddings().weight)


def test_random_weights_are_trained_from_and_resumed(tmp_path: Path) -> None:
    step = train_step(FULL, model=ModelConfig(path="org/tiny", init="random"), checkpoint_steps=2)
    out = make_run(tmp_path / "run")
    with kill_before(3), pytest.raises(Killed):
        run(step, out)
    assert run(step, out)[0] == run(step, make_run(tmp_path / "straight"))[0]


def test_training_in_bfloat16_lowers_the_loss_and_keeps_the_adapter_in_float32(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    run(train_step(precision="bf16", epochs=4.0), out)
    found = losses(out)
    assert found[-1][1] < found[0][1]
    from safetensors.torch import load_file

    tensors = load_file(out / artifacts.ADAPTER / artifacts.ADAPTER_WEIGHTS)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_metrics_have_a_line_for_each_logged_step_and_the_held_out_loss(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    write_store(out / artifacts.EVAL_DATA, [[sample] for sample in random_samples(4, seed=9)])
    run(train_step(log_steps=4, eval_steps=3), out)
    lines = metrics(out)
    assert [line["step"] for line in lines if "loss" in line] == [4, 6]
    assert [line["step"] for line in lines if "eval_loss" in line] == [3, 6]
    wanted = {"loss", "learning_rate", "grad_norm", "tokens_per_second", "seconds", "tokens", "eta_seconds"}
    assert wanted < lines[-2].keys()


def test_checkpoints_rotate_and_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    out = make_run(tmp_path)
    run(train_step(checkpoint_steps=1, keep_checkpoints=2, track=TrackConfig(tensorboard=True)), out)
    assert sorted(path.name for path in (out / artifacts.CHECKPOINTS).iterdir()) == ["step-4", "step-5"]
    assert list((out / "tensorboard").glob("events.*"))


def test_a_checkpoint_holds_a_loadable_adapter(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    run(train_step(checkpoint_steps=2), out)
    found = checkpoint.newest(out / artifacts.CHECKPOINTS)
    assert found is not None
    network = load.load_model(tiny_qwen2(tmp_path / "again"), dtype=torch.float32, device="cpu")
    adapters.load_adapter(network, found.folder / artifacts.ADAPTER, trainable=False)


def test_measuring_while_training_needs_held_out_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.eval_steps: no rows are held out"):
        run(train_step(eval_steps=3), make_run(tmp_path))


def test_tokens_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    write_store(out / artifacts.DATA, [[([5, 999], [0, 1])]])
    with pytest.raises(UserError, match=r"the data have token 999, but the model's embedding ends at 319"):
        run(train_step(), out)


def test_the_step_survives_the_plan(tmp_path: Path) -> None:
    step = train_step()
    assert isinstance(steps.from_json(json.loads(json.dumps(steps.to_json(step)))), TrainStep)


def test_the_running_average_is_published_instead_of_the_last_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    averaged, plain = make_run(tmp_path / "averaged"), make_run(tmp_path / "plain")
    run(train_step(ema_decay=0.9, checkpoint_steps=5), averaged)
    run(train_step(), plain)
    step = averaged / artifacts.CHECKPOINTS / "step-5"
    before, last, published = (
        load_file(out / artifacts.ADAPTER / artifacts.ADAPTER_WEIGHTS) for out in (step, plain, averaged)
    )
    moving = load_file(step / checkpoints.MOVING)
    # The last step is the sixth, number 5 from 0: the decay is still (1 + 5) / (10 + 5).
    for name, weight in before.items():
        assert torch.allclose(published[name], 0.4 * weight + 0.6 * last[name], atol=1e-7)
        assert not torch.equal(published[name], last[name])
    assert {"base_model.model." + name.replace(".default.", ".") for name in moving} == {*before}


@pytest.mark.parametrize(
    ("device", "asked", "expected"), [("cpu", False, True), ("cuda", False, False), ("cuda", True, True)]
)
def test_kernels_are_deterministic_on_a_cpu_and_where_they_are_asked_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, asked: bool, expected: bool
) -> None:
    seen = []

    def read(_: Path) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        raise StageError("enough is known")

    monkeypatch.setattr(stage, "read_base", read)
    step = train_step(FULL, deterministic=asked)
    step = replace(step, placement=replace(step.placement, device=device))
    with pytest.raises(StageError, match="enough"), stop_requests() as stop, connected(Placement()) as ranks:
        stage.train(step, tmp_path, stop, ranks)
    assert seen == [expected]
