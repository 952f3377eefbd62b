"""What Hydra's own flags ask for: `--cfg`, `--info`, `--hydra-help`, `--shell-completion`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig

from tunerun import paths
from tunerun.commands import arguments
from tunerun.config import overrides, register
from tunerun.config.resolve import PRIMARY, VERSION_BASE, compose_config, group_names, plain_config
from tunerun.errors import ExitCode, UserError

# What may stand beside `--cfg`.
_FLAGS = ("--resolve",)
_VALUES = ("-c", "--cfg", "-p", "--package", *arguments.CONFIG_DIR)


def main(argv: Sequence[str]) -> int:
    """Hands the arguments to Hydra, which prints what was asked for.

    Args:
        argv: Flags and overrides.

    Returns:
        The exit code.

    Raises:
        UserError: An override is wrong, where Hydra would print a trace.
    """
    names = {item.partition("=")[0] for item in argv}
    if names & {"-m", "--multirun"}:
        raise UserError("-m runs a sweep, and Hydra's own flags print something and stop: use one.")
    if names & {"-sc", "--shell-completion"}:
        if not {"install", "uninstall", "query"} & names:
            raise UserError('name what to complete for: eval "$(tunerun --shell-completion install=bash)"')
        given = list(argv)
    else:
        groups = group_names()
        given = [item if item.startswith("-") else overrides.prepare(item, groups) for item in argv]
    if names & {"-c", "--cfg"}:
        _check(argv)
    register.register()
    sys.argv = ["tunerun", *given]
    hydra.main(config_path=str(paths.shipped("conf")), config_name=PRIMARY, version_base=VERSION_BASE)(_unreached)()
    return ExitCode.DONE


def _check(argv: Sequence[str]) -> None:
    """Composes once before Hydra does, because its own errors are not for users."""
    options, typed = arguments.split(argv, flags=_FLAGS, values=_VALUES)
    composed = compose_config(typed, arguments.config_dir(options))
    if "--resolve" in options:
        plain_config(composed)


def _unreached(config: DictConfig) -> None:
    raise AssertionError(f"one of Hydra's flags was expected, and it ran a job: {config}")
