"""Composes a run's config: Hydra's groups and overrides into one typed, closed RunConfig."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tunerun import paths
from tunerun.config import checks, other_tools, overrides, register, sources, typed
from tunerun.config.schema import RunConfig
from tunerun.config.sources import Sources
from tunerun.config.unused import switched, without_unused
from tunerun.errors import Problem, UserError

PRIMARY = "tunerun"
VERSION_BASE = "1.3"


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
        config_dir: A further folder of configs, searched after the user's and the shipped ones.

    Raises:
        UserError: Something is wrong; carries every problem found.
    """
    groups = group_names()
    unread = [item for item in arguments if overrides.is_hydras(overrides.key_of(item)) and not _is_search_path(item)]
    if unread:
        fix = "The folder of a run is run_dir. A choice of hydra/sweeper goes with -m."
        raise UserError(Problem(where=item, what="tunerun reads only hydra.searchpath.", fix=fix) for item in unread)
    composed = compose_config(arguments, config_dir)
    return from_composed(composed, overrides.typed_keys(list(arguments), groups))


def compose_config(arguments: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """Lets Hydra compose what the user asked for, its own `hydra` node included, and checks nothing but syntax.

    Args:
        arguments: As for `resolve`.
        config_dir: As for `resolve`.

    Raises:
        UserError: An override cannot be read, or names what does not exist.
    """
    groups = group_names()
    problems = [problem for item in arguments if (problem := overrides.parse_problem(item, groups)) is not None]
    if sum(overrides.key_of(item) == "recipe" and not item.startswith("~") for item in arguments) > 1:
        fix = "Combine recipes with +recipe=[a,b]; the last goes first."
        problems.append(Problem(where="recipe", what="is given more than once.", fix=fix))
    if config_dir is not None and any(_is_search_path(item) for item in arguments):
        problems.append(Problem(where="hydra.searchpath", what="does not go with --config-dir.", fix="Use one."))
    if problems:
        raise UserError(problems)
    return _compose([overrides.prepare(item, groups) for item in arguments], config_dir)


def multirun(arguments: Sequence[str], config_dir: Path | None, task: TaskFunction) -> Any:
    """Lets Hydra choose the sweeper and start it.

    Args:
        arguments: Overrides as typed; `key=a,b` has several values.
        config_dir: As for `resolve`.
        task: Given to the sweeper.

    Returns:
        What the sweeper returns.

    Raises:
        UserError: An override is wrong, or no sweeper of ours is chosen, or it does not have a key.
    """
    groups = group_names()
    hydras = [item for item in arguments if overrides.is_hydras(overrides.key_of(item))]
    problems = [
        Problem(where=item, what="tunerun does not read it.", fix=_instead_of(item))
        for item in hydras
        if not re.fullmatch(r"hydra\.searchpath|hydra/sweeper|hydra\.sweeper\..+", overrides.key_of(item))
    ]
    found = (overrides.parse_problem(item, groups, several=item not in hydras) for item in arguments)
    problems += [problem for problem in found if problem is not None]
    if problems:
        raise UserError(problems)
    parser = OverridesParser.create()
    prepared = [overrides.prepare(item, groups) for item in arguments]
    common = [item for item in prepared if not parser.parse_override(item).is_sweep_override()]
    _check_sweeper(compose_config(common, config_dir))
    extra = [] if config_dir is None else [_search_path(config_dir)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(paths.shipped("conf")), version_base=VERSION_BASE):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None, "initialised just now"
        return hydra.multirun(PRIMARY, task, prepared + extra, with_log_configuration=False)


def _instead_of(item: str) -> str:
    if re.match(r"hydra[./]launcher\b", overrides.key_of(item)):
        return "Trials that run at a time: sweep.jobs=2; as jobs of Slurm: cluster=slurm."
    return "Of Hydra's own, a sweep reads hydra/sweeper, hydra.sweeper.KEY and hydra.searchpath."


def _check_sweeper(composed: DictConfig) -> None:
    node = OmegaConf.to_container(composed.hydra.sweeper, resolve=True)
    assert isinstance(node, dict)
    keys = {str(key): value for key, value in node.items() if key != "_target_"}
    known = dict(register.SWEEPERS.values())
    if node["_target_"] not in known:
        fix = f"Choose {' or '.join(register.SWEEPERS)}."
        raise UserError(Problem(where="hydra/sweeper", what="is none of tunerun's.", fix=fix))
    settings = known[node["_target_"]]
    if settings is None and keys:
        fix = "hydra/sweeper=tunerun_optuna has keys."
        raise UserError(Problem(where=f"hydra.sweeper.{next(iter(keys))}", what="a grid has no keys.", fix=fix))
    if settings is not None:
        _, problems = typed.build(type(settings), keys, "hydra.sweeper")
        if problems:
            raise UserError(problems)


def _is_search_path(override: str) -> bool:
    return overrides.key_of(override) == "hydra.searchpath"


def from_composed(composed: DictConfig, typed_keys: frozenset[str]) -> Resolved:
    """Turns a config that Hydra composed, its `hydra` node included, into a typed one.

    Raises:
        UserError: Something is wrong; carries every problem found.
    """
    choices = {str(group): option for group, option in composed.hydra.runtime.choices.items()}
    origin = sources.locate(choices, typed_keys)
    data = plain_config(composed)
    config, problems = typed.build(RunConfig, data)
    assert config is not None, "every key of RunConfig has a default"
    config, unused, notes = without_unused(config, origin)
    _refuse(problems, unused + checks.check(config), origin)
    recipe = choices.get("recipe")
    return Resolved(config=config, recipe=recipe, notes=tuple(notes))


def rebuild(data: dict[str, Any], arguments: Sequence[str], *, section: str | tuple[str, ...] = "") -> RunConfig:
    """Builds a config from plain data, with some keys changed.

    Args:
        data: What a run's config.yaml holds, or a part of it.
        arguments: `key=value` overrides.
        section: Checks only the keys that begin so, or with one of several; empty checks the whole config.

    Raises:
        UserError: A key or value is wrong.
    """
    syntax = [problem for item in arguments if (problem := overrides.parse_problem(item, frozenset())) is not None]
    if syntax:
        raise UserError(syntax)
    merged = OmegaConf.create(literal(data))
    for item in arguments:
        key, value = overrides.key_and_value(item)
        OmegaConf.update(merged, key, value, force_add=True)
    origin = Sources(typed=overrides.typed_keys(list(arguments), frozenset()), files=())
    config, problems = typed.build(RunConfig, OmegaConf.to_container(merged, resolve=True))  # type: ignore[arg-type]
    assert config is not None, "every key of RunConfig has a default"
    cleaned, unused, _ = without_unused(config, origin)
    # What a run was trained with stays as it was, but where another kind is chosen now.
    config = dataclasses.replace(config, **{name: getattr(cleaned, name) for name in switched(config, origin)})
    broken = [problem for problem in unused + checks.check(config) if problem.where.startswith(section)]
    _refuse(problems, broken, origin)
    return config


def literal(data: Any) -> Any:
    """Returns plain data that OmegaConf reads back as they are: `${` in a text starts no interpolation."""
    if isinstance(data, dict):
        return {key: literal(value) for key, value in data.items()}
    if isinstance(data, list):
        return [literal(value) for value in data]
    # Backslashes count only where they stand before an interpolation.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", data) if isinstance(data, str) else data


def _refuse(faulty: list[Problem], broken_rules: list[Problem], origin: Sources) -> None:
    """Raises when there are problems; a rule about a faulty key saw its default and says nothing."""
    keys = {problem.where.partition("[")[0] for problem in faulty}
    problems = [other_tools.renamed(problem) for problem in faulty]
    problems += [problem for problem in broken_rules if problem.where not in keys]
    if problems:
        raise UserError(replace(problem, source=origin.origin(problem.where)) for problem in problems)


def _compose(prepared: list[str], config_dir: Path | None) -> DictConfig:
    register.register()
    GlobalHydra.instance().clear()
    extra = [] if config_dir is None else [_search_path(config_dir)]
    try:
        with initialize_config_dir(str(paths.shipped("conf")), version_base=VERSION_BASE), warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*is not available")
            return compose(PRIMARY, overrides=prepared + extra, return_hydra_config=True)
    except MissingConfigException as error:
        raise UserError(_missing_option(error)) from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split()).replace(f"{Path.cwd()}/", "")
        raise UserError(f"a config file is not valid YAML: {reason}") from error
    except UnicodeDecodeError as error:
        raise UserError(_not_utf8(config_dir)) from error
    except RecursionError as error:
        raise UserError("a config file builds on itself: its defaults lead back to it.") from error
    except (HydraException, ConfigCompositionException, OmegaConfBaseException, ValueError, UserWarning) as error:
        raise UserError(_reason(error)) from error


def _search_path(config_dir: Path) -> str:
    return f"hydra.searchpath=[{overrides.quote(f'file://{config_dir.resolve()}')}]"


def _missing_option(error: MissingConfigException) -> Problem | str:
    missing = error.missing_cfg_file
    if missing is None or "/" not in missing:
        return _reason(error)
    # A name of a recipe may hold slashes by mistake; a group of Hydra's has one of its own.
    split = missing.partition if missing.startswith("recipe/") else missing.rpartition
    group, _, name = split("/")
    fix = typed.nearest(name, option_names(group))
    inner, _, option = name.partition("/")
    if group == "recipe" and inner in overrides.SECTIONS:
        fix = f"In the defaults of a recipe, write `- override /{inner}: {option}`."
    return Problem(where=f"{group}={name}", what=f"there is no {group} named `{name}`.", fix=fix)


def _not_utf8(config_dir: Path | None) -> str:
    folders = [*paths.user_folders("recipes"), *paths.user_folders("conf"), *([config_dir] if config_dir else [])]
    for file in sorted(file for folder in folders for file in folder.rglob("*.yaml") if file.is_file()):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return f"{sources.label(file)} is not UTF-8 text. Save it as UTF-8."
    return "a config file is not UTF-8 text. Save it as UTF-8."


def option_names(group: str, config_dir: Path | None = None) -> list[str]:
    """Returns the options of a group or the names of recipes, the user's included.

    Args:
        group: Such as `model`; `recipe` for recipes.
        config_dir: A further folder of configs, as for `resolve`.
    """
    if group == "hydra/sweeper":
        return sorted(register.SWEEPERS)
    kind, inner = ("recipes", "") if group == "recipe" else ("conf", group)
    folders = [folder / inner for folder in (*paths.user_folders(kind), paths.shipped(kind))]
    if config_dir is not None:
        folders.append(config_dir / group)
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml") if file.is_file()})


def _reason(error: Exception) -> str:
    """Returns Hydra's reason as one line, without its hints, which advise what tunerun refuses, and its search path."""
    text = str(error).partition("Config search path:")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("To append", "Set the env", "full_key", "object_type"))]
    reason = " ".join(kept).replace("++", "")
    twice = re.match(r"Multiple values for (\w+)\.|(\w+) appears more than once in the final defaults list", reason)
    if twice:
        group = twice[1] or twice[2]
        return f"{group} is chosen more than once. In the defaults of a recipe, write `- override /{group}: NAME`."
    unknown = re.search(r"Could not override '(\w+)'. No match in the defaults list", reason)
    if unknown:
        return f"{reason} {typed.nearest(unknown[1], sorted(group_names()))}"
    if "Cannot merge DictConfig with ListConfig" in str(error.__cause__):
        return f"{reason}: a list cannot take the place of a section of keys."
    return reason


def plain_config(composed: DictConfig) -> dict[str, Any]:
    """Turns a composed config into plain data without Hydra's node, interpolations resolved.

    Raises:
        UserError: An interpolation leads nowhere, or a value is still `???`.
    """
    plain = OmegaConf.create({key: value for key, value in composed.items_ex(resolve=False) if key != "hydra"})
    try:
        missing = sorted(OmegaConf.missing_keys(plain))
        container = OmegaConf.to_container(plain, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(Problem(where=error.full_key or "a value", what=f"{_reason(error)}.")) from error
    if missing:
        raise UserError(Problem(where=key, what="has no value yet (???).", fix=f"Set {key}=...") for key in missing)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
