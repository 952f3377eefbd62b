"""Each file of a checkpoint removed, cut, emptied or changed in one bit: it is named, and the one before it is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.train.runs import FULL, LORA, Killed, kill_before, losses, make_run, train_step
from tunerun import artifacts
from tunerun.formats import checkpoints
from tunerun.train import checkpoint
from tunerun.train.stage import run

DAMAGES = ("removed", "emptied", "cut", "first bit", "middle bit", "last bit")
METHODS = {"lora": LORA, "full": FULL}


@pytest.fixture(scope="module", params=METHODS)
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run that ended straight, one that was killed after step 5 with checkpoints of steps 2 and 4, and its method."""
    folder = tmp_path_factory.mktemp(request.param)
    step = train_step(METHODS[request.param], checkpoint_steps=2)
    straight, stopped = make_run(folder / "straight"), make_run(folder / "stopped")
    run(step, straight)
    with kill_before(5), pytest.raises(Killed):
        run(step, stopped)
    return straight, stopped, request.param


def _damage(path: Path, damage: str) -> None:
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage in ("emptied", "cut"):
        path.write_bytes(b"" if damage == "emptied" else content[: len(content) // 2])
    else:
        place = {"first bit": 0, "middle bit": len(content) // 2, "last bit": len(content) - 1}[damage]
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_found_and_named(
    tmp_path: Path, killed: tuple[Path, Path, str], capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    _, stopped, _ = killed
    source = stopped / artifacts.CHECKPOINTS
    names = [path.relative_to(source / "step-4") for path in (source / "step-4").rglob("*") if path.is_file()]
    assert len(names) >= 5
    for name in names:
        folder = tmp_path / name.name
        shutil.copytree(source, folder)
        _damage(folder / "step-4" / name, damage)
        found = checkpoint.newest(folder)
        assert found is not None and found.progress.step == 2, (name, damage)
        assert f"checkpoint step-4 is not used: {name} is " in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_training_goes_on_from_the_one_before_to_the_same_bits(
    tmp_path: Path, killed: tuple[Path, Path, str], damage: str
) -> None:
    straight, stopped, method = killed
    out = tmp_path / "run"
    shutil.copytree(stopped, out, symlinks=True)
    newest = out / artifacts.CHECKPOINTS / "step-4"
    if damage == "cut":
        _damage(newest / f"{checkpoint.OPTIMISER}.safetensors", "cut")
    else:
        shutil.rmtree(newest)
        newest.mkdir()
        (newest / "garbage").write_bytes(bytes(range(256)))
    made = run(train_step(METHODS[method], checkpoint_steps=2), out)[0]
    assert made == artifacts.describe(straight, made.kind, made.path)
    assert losses(out) == losses(straight)


def test_when_every_checkpoint_is_damaged_training_begins_anew(
    tmp_path: Path, killed: tuple[Path, Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    straight, stopped, method = killed
    out = tmp_path / "run"
    shutil.copytree(stopped, out, symlinks=True)
    for number in (2, 4):
        (out / artifacts.CHECKPOINTS / f"step-{number}" / checkpoints.MANIFEST).unlink()
    made = run(train_step(METHODS[method], checkpoint_steps=2), out)[0]
    assert made == artifacts.describe(straight, made.kind, made.path)
    printed = capsys.readouterr().err
    assert "step-4 is not used: manifest.json is missing" in printed
    assert "step-2 is not used: manifest.json is missing" in printed
