"""Composes a run's config: Hydra's groups and overrides into one typed, closed RunConfig."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tunerun import paths
from tunerun.config import checks, overrides, register, sources, typed
from tunerun.config.schema import RunConfig
from tunerun.config.sources import COMMAND_LINE, Sources
from tunerun.errors import Problem, UserError

PRIMARY = "tunerun"
VERSION_BASE = "1.3"

# The field that decides which other keys of its section are read.
_DISCRIMINATORS = {"objective": "kind", "method": "kind", "cluster": "kind", "hardware": "strategy"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A composed and checked config."""

    config: RunConfig
    recipe: str | None
    """Name of the recipe, when there is one."""
    notes: tuple[str, ...]
    """Keys of the recipe that the chosen kinds do not use."""


def group_names() -> frozenset[str]:
    """Returns the names of the config groups, the user's included."""
    folders = (*paths.user_folders("conf"), paths.shipped("conf"))
    return frozenset(child.name for folder in folders for child in folder.iterdir() if child.is_dir())


def resolve(arguments: Sequence[str], config_dir: Path | None = None) -> Resolved:
    """Composes what the user asked for.

    Args:
        arguments: Overrides as typed: `+recipe=x`, `model=y`, `key=value`.
        config_dir: A further folder of configs, searched first.

    Raises:
        UserError: Something is wrong; carries every problem found.
    """
    groups = group_names()
    syntax = [problem for item in arguments if (problem := overrides.parse_problem(item, groups)) is not None]
    if syntax:
        raise UserError(syntax)
    prepared = [overrides.prepare(item, groups) for item in arguments]
    composed = _compose(prepared, config_dir)
    return from_composed(composed, overrides.typed_keys(list(arguments), groups))


def from_composed(composed: DictConfig, typed_keys: frozenset[str]) -> Resolved:
    """Turns a config that Hydra composed, its `hydra` node included, into a typed one.

    Raises:
        UserError: Something is wrong; carries every problem found.
    """
    choices = {str(group): option for group, option in composed.hydra.runtime.choices.items()}
    origin = sources.locate(choices, typed_keys)
    data = _container(composed)
    config, problems = typed.build(RunConfig, data)
    assert config is not None, "every key of RunConfig has a default"
    unused, notes = _unused_keys(config, origin)
    _refuse(problems, unused + checks.check(config), origin)
    recipe = choices.get("recipe")
    return Resolved(config=config, recipe=recipe, notes=tuple(notes))


def rebuild(data: dict[str, Any], arguments: Sequence[str], *, section: str = "") -> RunConfig:
    """Builds a config from plain data, with some keys changed.

    Args:
        data: What a run's config.yaml holds, or a part of it.
        arguments: `key=value` overrides.
        section: Checks only the keys of this section; empty checks the whole config.

    Raises:
        UserError: A key or value is wrong.
    """
    syntax = [problem for item in arguments if (problem := overrides.parse_problem(item, frozenset())) is not None]
    if syntax:
        raise UserError(syntax)
    merged = OmegaConf.create(data)
    for item in arguments:
        key, value = overrides.key_and_value(item)
        OmegaConf.update(merged, key, value, force_add=True)
    origin = Sources(typed=overrides.typed_keys(list(arguments), frozenset()), files=())
    config, problems = typed.build(RunConfig, OmegaConf.to_container(merged, resolve=True))  # type: ignore[arg-type]
    assert config is not None, "every key of RunConfig has a default"
    unused, _ = _unused_keys(config, origin)
    broken = [problem for problem in unused + checks.check(config) if problem.where.startswith(section)]
    _refuse(problems, broken, origin)
    return config


def _refuse(faulty: list[Problem], broken_rules: list[Problem], origin: Sources) -> None:
    """Raises when there are problems; a rule about a faulty key saw its default and says nothing."""
    keys = {problem.where.partition("[")[0] for problem in faulty}
    problems = faulty + [problem for problem in broken_rules if problem.where not in keys]
    if problems:
        raise UserError(replace(problem, source=origin.origin(problem.where)) for problem in problems)


def _compose(prepared: list[str], config_dir: Path | None) -> DictConfig:
    register.register()
    GlobalHydra.instance().clear()
    extra = [f"hydra.searchpath=[file://{config_dir.resolve()}]"] if config_dir is not None else []
    try:
        with initialize_config_dir(str(paths.shipped("conf")), version_base=VERSION_BASE):
            return compose(PRIMARY, overrides=prepared + extra, return_hydra_config=True)
    except MissingConfigException as error:
        raise UserError(_missing_option(error)) from error
    except yaml.YAMLError as error:
        raise UserError(f"A config file is not valid YAML: {' '.join(str(error).split())}") from error
    except (HydraException, ConfigCompositionException, OmegaConfBaseException, ValueError) as error:
        raise UserError(_first_lines(error)) from error


def _missing_option(error: MissingConfigException) -> Problem | str:
    if error.missing_cfg_file is None or error.options is None:
        return _first_lines(error)
    group, _, name = error.missing_cfg_file.rpartition("/")
    fix = typed.nearest(name, list(error.options))
    return Problem(where=f"{group}={name}", what=f"there is no {group} named `{name}`.", fix=fix)


def _first_lines(error: Exception) -> str:
    """Returns Hydra's reason without its hints, which advise what tunerun refuses."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("To append", "Set the env", "full_key", "object_type"))]
    return " ".join(kept)


def _container(composed: DictConfig) -> dict[str, Any]:
    plain = {key: value for key, value in composed.items_ex(resolve=False) if key != "hydra"}
    try:
        container = OmegaConf.to_container(OmegaConf.create(plain), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(_first_lines(error)) from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _unused_keys(config: RunConfig, origin: Sources) -> tuple[list[Problem], list[str]]:
    """Finds keys that the chosen kinds do not read: faults when typed, notes when a recipe set them."""
    problems: list[Problem] = []
    notes: list[str] = []
    for section, discriminator in _DISCRIMINATORS.items():
        values = getattr(config, section)
        kind = getattr(values, discriminator)
        for item in dataclasses.fields(values):
            if "kinds" not in item.metadata or kind in item.metadata["kinds"]:
                continue
            key = f"{section}.{item.name}"
            source = origin.origin(key)
            what = f"is not used by {section}.{discriminator}={kind}."
            if source == COMMAND_LINE:
                fix = f"Remove it, or choose one of: {', '.join(item.metadata['kinds'])}."
                problems.append(Problem(where=key, what=what, fix=fix))
            elif source and getattr(values, item.name) != item.default:
                notes.append(f"{key} ({source}) {what}")
    return problems, notes
