"""Which environment variables hold secrets because a config names them, whatever they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tunerun import redact
from tunerun.config.schema import RunConfig

if TYPE_CHECKING:
    # Commands that compose nothing would wait for it.
    from omegaconf import DictConfig


def secret_variables(config: RunConfig | DictConfig) -> tuple[str, ...]:
    """Returns the names of variables that hold secrets by a key of the config.

    Args:
        config: Of the run, or what Hydra composed for it.
    """
    named = (config.answer.api_key_env, config.serve.api_key_env)
    return tuple(dict.fromkeys(name for name in named if name is not None))


def secrets_of(config: RunConfig | DictConfig, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the values that no file and no line of a run may hold.

    Args:
        config: Of the run, or what Hydra composed for it.
        environment: Variables of this process.
    """
    return redact.secret_values(environment, secret_variables(config))
