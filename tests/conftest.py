"""What all tests share: the real material beside the checkout, and Hydra's globals cleared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of public data sets, templates and tokenizers beside the checkout."""
    folder = Path(os.environ.get("TUNERUN_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the shared material, which is not at {folder}")
    return folder


@pytest.fixture(autouse=True)
def _clean_hydra() -> Iterator[None]:
    yield
    if "hydra" in sys.modules:
        from hydra.core.global_hydra import GlobalHydra

        GlobalHydra.instance().clear()


@pytest.fixture
def tunerun(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in an empty folder, offline, as a user would."""

    def call(*arguments: str, cwd: Path = tmp_path, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100"}
        return subprocess.run(
            [sys.executable, "-m", "tunerun", *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )

    return call
