from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import Parameter

from tests.tiny import random_samples, write_store
from tests.train.old_checkpoints import to_schema_2
from tests.train.runs import Killed, kill_before, losses, make_run, train_step
from tunerun import artifacts
from tunerun.config.schema import TrainConfig
from tunerun.errors import StageError, UserError
from tunerun.formats import checkpoints
from tunerun.plan.placement import Placement
from tunerun.train import checkpoint, held_out, optim
from tunerun.train.checkpoint import Progressed
from tunerun.train.engines import Engine, Parts, make_engine
from tunerun.train.ranks import Ranks
from tunerun.train.stage import run

STATE = f"{checkpoint.OPTIMISER}.safetensors"
NUMBERS = f"{checkpoint.OPTIMISER}.json"
FILES = ["adapter/weights.bin", STATE, NUMBERS, checkpoints.MANIFEST]
IDENTITY = {"train.learning_rate": 0.1, "seed": 1, "placement.threads": 2, "data (content)": "abc"}


def _engine(value: float) -> Engine:
    """Holds a matrix `p` for AdamW to move."""
    network = torch.nn.Module()
    network.register_parameter("p", Parameter(torch.full((2, 2), value)))
    return make_engine(
        Parts(
            network=network,
            optimisers=lambda parameters: optim.make_optimisers(parameters, TrainConfig()),
            placement=Placement(),
            ranks=Ranks(),
            max_grad_norm=None,
            deepspeed={},
        )
    )


def _write(
    folder: Path, step: int, *, keep: int = 2, failing: bool = False, best: int | None = None, every: int | None = None
) -> None:
    engine = _engine(float(step))
    engine.parameters["p"].grad = torch.ones(2, 2)
    engine.move(0.1)
    state = engine.state()

    def fill(staging: Path) -> None:
        (staging / "adapter").mkdir()
        (staging / "adapter" / "weights.bin").write_bytes(bytes([step] * 100))
        checkpoint.save_state(staging, state, {}, Ranks())
        if failing:
            raise OSError(28, "No space left on device")

    checkpoint.write(
        folder,
        Progressed(step=step, best_step=best),
        identity=IDENTITY,
        fill=fill,
        needed_bytes=checkpoint.state_bytes(engine.parameters, state, {}),
        train=TrainConfig(keep_checkpoints=keep, checkpoint_steps=every),
        ranks=Ranks(),
    )


def _damage(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-5])
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        place = len(content) // 2
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :])


def test_the_newest_is_found_and_older_ones_rotate_away(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (2, 9, 10):
        _write(tmp_path, step)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.folder.name, found.progress.step) == ("step-10", 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-9"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["removed", "cut", "emptied", "bit flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    _write(tmp_path, 1)
    _write(tmp_path, 2)
    _damage(tmp_path / "step-2" / name, damage)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress.step == 1
    assert f"checkpoint step-2 is not used: {name} is " in capsys.readouterr().err


def test_damaged_checkpoints_of_later_steps_do_not_push_out_a_good_one(tmp_path: Path) -> None:
    _write(tmp_path, 2)
    _write(tmp_path, 9)
    _damage(tmp_path / "step-9" / checkpoints.MANIFEST, "cut")
    _write(tmp_path, 4, keep=1)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress.step == 4
    assert [path.name for path in tmp_path.iterdir()] == ["step-4"]


def test_the_one_with_the_lowest_loss_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        _write(tmp_path, step, keep=1, best=2 if step > 1 else None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-4"]


def test_the_newest_that_was_due_stays_beside_one_that_was_not(tmp_path: Path) -> None:
    train = TrainConfig(checkpoint_steps=2)
    for step in (2, 4, 5, 7):
        _write(tmp_path, step, keep=1, every=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-4", "step-7"]
    due, newest = checkpoint.newest(tmp_path, due=train), checkpoint.newest(tmp_path)
    assert due is not None and due.progress.step == 4
    assert newest is not None and newest.progress.step == 7
    _write(tmp_path, 8, keep=1, every=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-8"]


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StageError, match=r"step-2 takes about 1,048,\d+ bytes, and .* has 1,000 free"):
        _write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_checkpoint_of_schema_1_is_read(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    path = tmp_path / "step-1"
    (path / NUMBERS).unlink()
    manifest = json.loads((path / checkpoints.MANIFEST).read_text())
    known = ("step", "tokens", "trained_tokens", "seconds", "first_loss", "last_loss")
    old = {
        "schema": 1,
        "progress": {key: manifest["progress"][key] for key in known},
        "identity": manifest["identity"],
        "files": {key: value for key, value in manifest["files"].items() if key != NUMBERS},
    }
    (path / checkpoints.MANIFEST).write_text(json.dumps(old))
    found = checkpoint.newest(tmp_path)
    assert found is not None
    engine = _engine(0.0)
    checkpoint.restore_state(found, engine, None)
    assert engine.state().tensors["p|step"] == 1


def test_a_checkpoint_of_schema_2_is_gone_on_with_to_the_same_bits(tmp_path: Path) -> None:
    step = train_step(ema_decay=0.9, checkpoint_steps=2, eval_steps=1, keep_best=True)
    straight, stopped = make_run(tmp_path / "straight"), make_run(tmp_path / "stopped")
    for out in (straight, stopped):
        write_store(out / artifacts.EVAL_DATA, [[sample] for sample in random_samples(4, seed=9)])
    wanted = run(step, straight)[0]
    with kill_before(3), pytest.raises(Killed):
        run(step, stopped)
    for folder in (stopped / artifacts.CHECKPOINTS).iterdir():
        to_schema_2(folder)
    assert run(step, stopped)[0] == wanted
    assert losses(stopped) == losses(straight)


@pytest.mark.parametrize(("before", "now"), [(0.9, None), (None, 0.9)])
def test_an_average_may_be_turned_off_and_on(tmp_path: Path, before: float | None, now: float | None) -> None:
    plain, changed = make_run(tmp_path / "plain"), make_run(tmp_path / "changed")
    run(train_step(), plain)
    with kill_before(3), pytest.raises(Killed):
        run(train_step(checkpoint_steps=2, ema_decay=before), changed)
    run(replace(train_step(ema_decay=now), allow=("train.ema_decay",)), changed)
    # An average moves no weight that the losses come from.
    assert losses(changed) == losses(plain)
    one, other = (artifacts.sha256(out / "adapter" / artifacts.ADAPTER_WEIGHTS) for out in (changed, plain))
    assert (one == other) == (now is None)


def test_the_best_weights_are_those_that_were_measured_whatever_became_of_the_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make_run(tmp_path)
    write_store(out / artifacts.EVAL_DATA, [[sample] for sample in random_samples(4, seed=9)])
    losses_told = iter([1.0, *range(2, 20)])
    monkeypatch.setattr(held_out, "measure", lambda job: {"eval_loss": next(losses_told)})
    best = {"eval_steps": 2, "keep_best": True}
    with kill_before(3), pytest.raises(Killed):
        run(train_step(ema_decay=0.9, **best), out)
    measured = (out / artifacts.CHECKPOINTS / "step-2" / "adapter" / artifacts.ADAPTER_WEIGHTS).read_bytes()
    run(replace(train_step(**best), allow=("train.ema_decay",)), out)
    assert (out / "adapter" / artifacts.ADAPTER_WEIGHTS).read_bytes() == measured


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path, 1)
    manifest = tmp_path / "step-1" / checkpoints.MANIFEST
    manifest.write_text(manifest.read_text().replace(f'"schema": {checkpoints.SCHEMA}', '"schema": 99'))
    assert checkpoint.newest(tmp_path) is None
    assert "it was written by a newer version (schema 99)" in capsys.readouterr().err


def test_a_failed_write_leaves_the_others_and_no_remains(tmp_path: Path) -> None:
    _write(tmp_path, 1, keep=1)
    with pytest.raises(OSError, match="No space left"):
        _write(tmp_path, 2, keep=1, failing=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_what_differs_is_named_all_at_once(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert checkpoint.check_identity(found, IDENTITY) == ()
    with pytest.raises(UserError) as caught:
        checkpoint.check_identity(found, {**IDENTITY, "train.learning_rate": 0.2, "seed": 2})
    assert [problem.where for problem in caught.value.problems] == ["seed", "train.learning_rate"]
    assert "was made with 0.1; now it is 0.2." in str(caught.value)
    assert "--allow train.learning_rate" in str(caught.value)


def test_a_key_that_was_not_there_yet_is_no_difference_at_its_default(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert checkpoint.check_identity(found, {**IDENTITY, "train.deterministic": False}) == ()
    with pytest.raises(UserError, match=r"train\.deterministic"):
        checkpoint.check_identity(found, {**IDENTITY, "train.deterministic": True})


def test_what_only_changes_bits_is_a_reason_and_no_refusal(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    reasons = checkpoint.check_identity(found, {**IDENTITY, "placement.threads": 4})
    assert reasons == ("hardware.threads was 2 and is 4 now",)


@pytest.mark.parametrize("allow", ["train.learning_rate", "train"])
def test_an_allowed_key_may_differ_and_is_a_reason(tmp_path: Path, allow: str) -> None:
    _write(tmp_path, 1)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    reasons = checkpoint.check_identity(found, {**IDENTITY, "train.learning_rate": 0.2}, [allow])
    assert reasons == ("train.learning_rate was 0.1 and is 0.2 now",)


@pytest.mark.parametrize("allow", ["data", "data.path"])
def test_other_data_can_be_allowed_too(tmp_path: Path, allow: str) -> None:
    _write(tmp_path, 1)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    changed = {**IDENTITY, "data (content)": "def"}
    assert checkpoint.check_identity(found, changed, [allow])
    with pytest.raises(UserError, match=r"--allow data$"):
        checkpoint.check_identity(found, changed)
