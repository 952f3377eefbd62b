"""From what was typed to a plan: what `run`, `plan`, `data` and `resume` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tunerun import machine as machines
from tunerun import paths
from tunerun.config.data_sources import with_paths
from tunerun.config.register import new_run_id
from tunerun.config.resolve import Resolved
from tunerun.config.schema import RunConfig
from tunerun.errors import Problem, UserError
from tunerun.plan import build, dataset, readiness, shape
from tunerun.plan.plan import Plan

OUTPUTS = Path("outputs")
ADHOC = "adhoc"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A plan, the config it was made from, and what keeps this machine from running it."""

    config: RunConfig
    plan: Plan
    obstacles: tuple[Problem, ...]


def prepare(resolved: Resolved) -> Prepared:
    """Fills in what the config leaves open and builds the plan.

    Raises:
        UserError: A path or a device is wrong.
    """
    config = _absolute(resolved.config)
    name = config.name or _recipe_name(resolved.recipe)
    run_dir = Path(config.run_dir) if config.run_dir is not None else OUTPUTS / name / new_run_id()
    config = replace(config, name=name, run_dir=str(run_dir.absolute()))
    return plan_for(config, resolved.notes)


def plan_for(config: RunConfig, notes: Sequence[str] = ()) -> Prepared:
    """Builds the plan of a config that has a name and a run directory.

    Raises:
        UserError: The device planned for is unknown.
    """
    assert config.run_dir is not None and config.model.path is not None
    machine = machines.facts()
    folder = Path(paths.resolve_asset(config.model.path))
    if (folder / "config.json").is_file():
        config = replace(config, model=replace(config.model, shape=shape.read_shape(folder)))
    facts = build.Facts(machine=machine, data=dataset.measure(config.data))
    plan = build.build(config, facts, tuple(notes))
    return Prepared(config=config, plan=plan, obstacles=tuple(readiness.problems(config, plan, machine)))


def require_ready(prepared: Prepared) -> None:
    """Refuses a plan that cannot run here.

    Raises:
        UserError: Names everything in the way.
    """
    if prepared.obstacles:
        raise UserError(prepared.obstacles)


def _recipe_name(recipe: str | None) -> str:
    return recipe.strip("[]").split(",")[-1].strip().removesuffix(".yaml") if recipe else ADHOC


def _absolute(config: RunConfig) -> RunConfig:
    """Makes local paths absolute, so that a run can be resumed from another folder."""
    model = replace(
        config.model,
        path=_local(config.model.path),
        adapter=_local(config.model.adapter),
        chat_template=_local(config.model.chat_template),
    )
    objective = replace(config.objective, teacher=_local(config.objective.teacher))
    lock = replace(
        config.lock, data_sha256={str(_local(path)): digest for path, digest in config.lock.data_sha256.items()}
    )
    data = with_paths(config.data, lambda path: str(_local(path)))
    return replace(config, model=model, data=data, objective=objective, lock=lock)


def _local(path: str | None) -> str | None:
    if path is None or path.startswith(paths.ASSET_SCHEME):
        return path
    found = Path(path).expanduser()
    return str(found.absolute()) if found.exists() else path
