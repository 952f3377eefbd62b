from collections.abc import Callable
from pathlib import Path

import pytest

from tunerun.sprout.__main__ import write_all


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything `python -m tunerun.sprout` writes, but fewer rows of text."""
    return _build(tmp_path_factory.mktemp("sprout"))


@pytest.fixture(scope="session")
def build_again(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    return lambda: _build(tmp_path_factory.mktemp("again"))


def _build(folder: Path) -> Path:
    write_all(folder, documents=8000, dialogues=8000)
    return folder
