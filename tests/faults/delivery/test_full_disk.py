"""A disk that fills up at any write of merge or export: nothing half-made is seen, and both go on with space."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.disk import PAGE_BYTES, resize, small_disk, taken_bytes
from tests.tiny import tiny_qwen2
from tests.train.runs import LORA, make_run, train_step
from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.base_model import BaseModel, write_base
from tunerun.config.schema import GgufConfig
from tunerun.errors import StageError
from tunerun.merge import stage as merge_stage
from tunerun.plan.steps import ExportStep, MergeStep
from tunerun.train import stage as train_stage

__all__ = ["small_disk"]

PLENTY = 64 << 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    tiny_qwen2(out / "base", hidden_size=256, intermediate_size=256)
    train_stage.run(train_step(LORA), make_run(out))
    return out


def fails_whole_and_goes_on(
    run: Callable[[], list[Artifact]], folder: str, disk: Path, base: Path, pages: int
) -> tuple[int, int]:
    """Runs a stage with room for nothing, and for a few pages more each time.

    Returns:
        How often the disk was too small, and how often it was tried.
    """

    def clear() -> None:
        shutil.rmtree(disk / folder, ignore_errors=True)
        (disk / artifacts.MODEL).unlink(missing_ok=True)

    def prepare() -> None:
        resize(disk, PLENTY)
        clear()
        write_base(disk, BaseModel(folder=base, path=str(base), revision=None, sha256="0" * 64))

    prepare()
    rest = taken_bytes(disk)
    wanted = run()
    failures, sizes = 0, range(rest, rest + taken_bytes(disk / folder) + 8 * PAGE_BYTES, pages * PAGE_BYTES)
    for number, size in enumerate(sizes):
        prepare()
        old = disk / folder / "old"
        if number % 2:
            # What an earlier run made stays as it was.
            old.parent.mkdir()
            old.write_text("old")
        before = sorted(path.name for path in disk.iterdir())
        resize(disk, size + PAGE_BYTES * (number % 2))
        try:
            run()
        except (StageError, OSError) as error:
            failures += 1
            assert "No space left on device" in str(error), error
            assert sorted(path.name for path in disk.iterdir()) == before
            assert not (number % 2) or [path.name for path in old.parent.iterdir()] == ["old"]
        resize(disk, PLENTY)
        assert run() == wanted
    return failures, len(sizes)


FEW = [pytest.param(40, id="few"), pytest.param(3, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


@pytest.mark.parametrize("pages", FEW)
def test_merging(trained: Path, small_disk: Path, pages: int) -> None:
    step = MergeStep(adapter=str(trained / artifacts.ADAPTER), chat_template=None, max_shard_size_bytes=1 << 20)
    base = trained / "base"
    failures, tried = fails_whole_and_goes_on(
        lambda: merge_stage.run(step, small_disk), artifacts.MERGED, small_disk, base, pages
    )
    assert failures > tried // 2


@pytest.mark.parametrize("pages", FEW)
def test_exporting(trained: Path, small_disk: Path, pages: int) -> None:
    pytest.importorskip("llama_cpp")
    from tunerun.export import stage as export_stage

    gguf: Any = GgufConfig(types=("q8_0", "q4_k_m"), adapter=True)
    step = ExportStep(
        name="tiny", merged=False, gguf=gguf, chat_template=None, adapter=str(trained / artifacts.ADAPTER), system="x"
    )
    failures, tried = fails_whole_and_goes_on(
        lambda: export_stage.run(step, small_disk), artifacts.EXPORT, small_disk, trained / "base", pages
    )
    assert failures > tried // 2
