from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import Parameter

from tunerun.config.schema import TrainConfig
from tunerun.errors import UserError
from tunerun.train import checkpoint, optim
from tunerun.train.checkpoint import Progressed

FILES = ["adapter/weights.bin", checkpoint.OPTIMISER, checkpoint.MANIFEST]


def _write(folder: Path, step: int, keep: int = 2, failing: bool = False) -> None:
    parameter = Parameter(torch.full((2, 2), float(step)))
    optimiser = optim.make_optimiser({"p": parameter}, TrainConfig())
    parameter.grad = torch.ones(2, 2)
    optimiser.step()

    def save(staging: Path) -> None:
        (staging / "adapter").mkdir()
        (staging / "adapter" / "weights.bin").write_bytes(bytes([step] * 100))
        if failing:
            raise OSError(28, "No space left on device")

    checkpoint.write(
        folder,
        Progressed(step=step),
        identity={"train.learning_rate": 0.1, "seed": 1},
        save_weights=save,
        optimiser=optimiser,
        parameters={"p": parameter},
        keep=keep,
    )


def test_the_newest_is_found_and_older_ones_rotate_away(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    for step in (2, 9, 10):
        _write(tmp_path, step)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.folder.name, found.progress.step) == ("step-10", 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-9"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["removed", "cut", "bit flipped"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    _write(tmp_path, 1)
    _write(tmp_path, 2)
    path = tmp_path / "step-2" / name
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-5])
    else:
        path.write_bytes(content[:-5] + bytes([content[-5] ^ 0x80]) + content[-4:])
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.progress.step == 1
    assert "checkpoint step-2 is not used: " in capsys.readouterr().err


def test_a_failed_write_leaves_the_others_and_no_remains(tmp_path: Path) -> None:
    _write(tmp_path, 1, keep=1)
    with pytest.raises(OSError, match="No space left"):
        _write(tmp_path, 2, keep=1, failing=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_what_differs_is_named_all_at_once(tmp_path: Path) -> None:
    _write(tmp_path, 1)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    checkpoint.check_identity(found, {"train.learning_rate": 0.1, "seed": 1})
    with pytest.raises(UserError) as caught:
        checkpoint.check_identity(found, {"train.learning_rate": 0.2, "seed": 2})
    assert [problem.where for problem in caught.value.problems] == ["seed", "train.learning_rate"]
    assert "was made with 0.1; now it is 0.2." in str(caught.value)
