from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.old_checkpoints import as_schema_2, to_schema_2
from tests.train.runs import FULL, LORA, make_run, train_step
from tunerun import artifacts
from tunerun.config.schema import MethodConfig
from tunerun.errors import UserError
from tunerun.formats import checkpoints
from tunerun.train import ema
from tunerun.train.stage import run

METHODS = {
    "lora": LORA,
    "dora": MethodConfig(kind="dora", rank=4, alpha=8.0),
    "pissa": MethodConfig(kind="pissa", rank=4, alpha=8.0, pissa_iterations=0),
    "whole modules": MethodConfig(rank=4, alpha=8.0, modules_to_save=("embed_tokens",)),
    "an embedding's factors": MethodConfig(rank=4, alpha=8.0, target_modules=("embed_tokens", "q_proj")),
    "full": FULL,
    "freeze": MethodConfig(kind="freeze", layers=1),
}


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = [file for name in ("adapter", "model") for file in (checkpoint / name).glob("*.safetensors")]
    return {name: value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_checkpoint_of_schema_2_becomes_what_it_would_be_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: MethodConfig
) -> None:
    averages: list[dict[str, torch.Tensor]] = []
    update = ema.update

    def noted(average: ema.Average, *rest: object) -> None:
        update(average, *rest)  # type: ignore[arg-type]
        averages.append({name: weight.clone() for name, weight in average.weights.items()})

    monkeypatch.setattr(ema, "update", noted)
    today, plain = make_run(tmp_path / "today"), make_run(tmp_path / "plain")
    run(train_step(method, max_steps=2, checkpoint_steps=1, ema_decay=0.9), today)
    # An average moves no weight: without one, the same weights are trained, and lie in adapter/ or model/.
    run(train_step(method, max_steps=2, checkpoint_steps=1), plain)
    wanted, old = (out / artifacts.CHECKPOINTS / "step-1" for out in (today, plain))
    before = _weights(old)
    as_schema_2(old, averages[0])
    checkpoints.renew(old)
    assert checkpoints.fault(old) is None
    assert {path.name for path in old.iterdir()} == {path.name for path in wanted.iterdir()}
    for found, expected in (
        (_weights(old), _weights(wanted)),
        (load_file(old / checkpoints.MOVING), load_file(wanted / checkpoints.MOVING)),
    ):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert any(not torch.equal(before[name], value) for name, value in _weights(old).items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoint of step 1 is one of schema 2."""
    out = make_run(tmp_path_factory.mktemp("run"))
    run(train_step(max_steps=2, checkpoint_steps=1, ema_decay=0.9), out)
    to_schema_2(out / artifacts.CHECKPOINTS / "step-1")
    return out


@pytest.fixture
def old(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / artifacts.CHECKPOINTS, tmp_path / "checkpoints")) / "step-1"


def test_several_that_need_it_at_once_renew_it_once(old: Path) -> None:
    average = load_file(old / "average.safetensors")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: checkpoints.renew(old), range(8)))
    assert checkpoints.fault(old) is None
    values = _weights(old)
    assert all(
        torch.equal(values["base_model.model." + name.replace(".default", "")], average[name]) for name in average
    )


def test_what_needs_no_renewal_stays(old: Path, tmp_path: Path) -> None:
    checkpoints.renew(old)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for folder in (old, tmp_path, tmp_path / "nothing"):
        checkpoints.renew(folder)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_damaged_one_is_refused_and_stays(old: Path) -> None:
    file = old / "average.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"step-1: average\.safetensors is damaged\. Take another checkpoint\."):
        checkpoints.renew(old)
    assert file.read_bytes() == content


def test_an_average_of_other_weights_is_refused_and_the_checkpoint_stays(old: Path) -> None:
    average = load_file(old / "average.safetensors")
    name = sorted(average)[0]
    as_schema_2(old, {**average, name: torch.zeros(3, 3)})
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=f"its average has {name}, which is none of its weights"):
        checkpoints.renew(old)
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    assert [path.name for path in old.parent.iterdir() if path.name.startswith(".")] == []


def test_one_that_cannot_be_rewritten_is_refused(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(UserError, match=r"cannot be rewritten: No space left on device\. Copy the run"):
        checkpoints.renew(old)
