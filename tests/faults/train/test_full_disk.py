"""A disk that fills up at any write of a checkpoint, or of the final weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.disk import PAGE_BYTES, resize, small_disk, taken_bytes
from tests.train.runs import LORA, before_step, losses, make_run, train_step
from tunerun import artifacts
from tunerun.errors import StageError
from tunerun.formats import checkpoints
from tunerun.plan.steps import TrainStep
from tunerun.train.stage import run

STEP = train_step(LORA, checkpoint_steps=2)

__all__ = ["small_disk"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = make_run(tmp_path_factory.mktemp("straight"))
    run(STEP, out)
    return out


def _fails_and_goes_on(step: TrainStep, out: Path, straight: Path, disk: Path, sizes: range) -> int:
    """Trains with a disk of each size; returns how often it was too small."""
    wanted, failures = artifacts.describe(straight, "adapter", artifacts.ADAPTER), 0
    for size in sizes:
        for path in (disk, out / artifacts.ADAPTER):
            shutil.rmtree(path, ignore_errors=True)
        (out / artifacts.METRICS).unlink(missing_ok=True)
        resize(disk, size)
        try:
            run(step, out)
        except (StageError, OSError) as error:
            failures += 1
            assert "No space left on device" in str(error), error
        for left in (out / artifacts.CHECKPOINTS).iterdir():
            assert checkpoints.fault(left) is None, left
        resize(disk, 64 << 20)
        assert run(step, out)[0] == wanted
        assert losses(out) == losses(straight)
    return failures


@pytest.mark.parametrize("pages", [6, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_disk_that_fills_up_at_any_write_of_a_checkpoint(
    tmp_path: Path, small_disk: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 40))
    out = make_run(tmp_path / "run")
    (out / artifacts.CHECKPOINTS).symlink_to(small_disk)
    # From room for half of the first checkpoint to room for both.
    one = taken_bytes(straight / artifacts.CHECKPOINTS / "step-4")
    sizes = range(one // 2, 2 * one + 4 * PAGE_BYTES, pages * PAGE_BYTES)
    assert _fails_and_goes_on(STEP, out, straight, small_disk, sizes) >= len(sizes) // 2


@pytest.mark.parametrize("pages", [1, 4])
def test_a_disk_that_is_full_at_the_end_keeps_what_was_trained(
    tmp_path: Path, small_disk: Path, straight: Path, pages: int
) -> None:
    base = make_run(tmp_path / "elsewhere") / "base"
    resize(small_disk, 64 << 20)
    (small_disk / "base").symlink_to(base)
    out = make_run(small_disk)
    filler = out / "filler"

    def fill_up() -> None:
        free = shutil.disk_usage(out).free - pages * PAGE_BYTES
        filler.write_bytes(bytes(free))

    with before_step(5, fill_up), pytest.raises((StageError, OSError), match="No space left on device"):
        run(STEP, out)
    assert not (out / artifacts.ADAPTER).exists()
    assert not list(out.glob(".*partial*"))
    filler.unlink()
    assert run(STEP, out)[0] == artifacts.describe(straight, "adapter", artifacts.ADAPTER)


def test_too_little_space_stops_training_before_a_checkpoint_is_begun(
    tmp_path: Path, small_disk: Path, straight: Path
) -> None:
    out = make_run(tmp_path / "run")
    (out / artifacts.CHECKPOINTS).symlink_to(small_disk)
    one = taken_bytes(straight / artifacts.CHECKPOINTS / "step-4")
    resize(small_disk, one + (1 << 20) + 4 * PAGE_BYTES)
    with pytest.raises(StageError, match=r"checkpoint step-4 takes about [\d,]+ bytes, and .* has [\d,]+ free"):
        run(STEP, out)
    assert [path.name for path in small_disk.iterdir()] == ["step-2"]
    resize(small_disk, 64 << 20)
    assert run(STEP, out)[0] == artifacts.describe(straight, "adapter", artifacts.ADAPTER)
