"""What Hydra's own flags ask for: `--cfg`, `--info`, `--hydra-help`, `--shell-completion`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from tunerun import paths
from tunerun.config import overrides, register
from tunerun.config.resolve import PRIMARY, VERSION_BASE, group_names
from tunerun.errors import ExitCode


def main(argv: Sequence[str]) -> int:
    """Hands the arguments to Hydra, which prints what was asked for.

    Args:
        argv: Flags and overrides.

    Returns:
        The exit code.
    """
    groups = group_names()
    register.register()
    sys.argv = ["tunerun", *(item if item.startswith("-") else overrides.prepare(item, groups) for item in argv)]
    hydra.main(config_path=str(paths.shipped("conf")), config_name=PRIMARY, version_base=VERSION_BASE)(_unreached)()
    return ExitCode.DONE


def _unreached(config: DictConfig) -> None:
    raise AssertionError(f"one of Hydra's flags was expected, and it ran a job: {config}")
