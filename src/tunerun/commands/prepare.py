"""From what was typed to a plan, and from a plan to a run: what `run`, `plan`, `data` and `resume` have in common."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tunerun import artifacts, paths
from tunerun import machine as machines
from tunerun.config import checks
from tunerun.config.data_sources import with_paths
from tunerun.config.register import new_run_id
from tunerun.config.resolve import Resolved
from tunerun.config.schema import RunConfig
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.formats.trained_base import read_quantisation
from tunerun.launch import allocation
from tunerun.launch import nodes as launch_nodes
from tunerun.launch.cluster import Typed
from tunerun.plan import accelerate, build, dataset, deepspeed, new_tokens, nodes, readiness, shape
from tunerun.plan.plan import Plan
from tunerun.plan.tasks import TASK_SUFFIXES
from tunerun.run import follower, runner, submit, summary
from tunerun.run.runner import Summary

OUTPUTS = Path("outputs")
ADHOC = "adhoc"
_MODEL_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A plan, the config it was made from, and what keeps this machine from running it."""

    config: RunConfig
    plan: Plan
    obstacles: tuple[Problem, ...]
    is_queued: bool = False
    """Whether it is for a cluster to run it, and not for this process."""


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
    config, unread = _of_accelerate(config)
    config = _of_adapter(replace(config, model=replace(config.model, path=_whole(config.model.path))))
    assert config.run_dir is not None
    machine = machines.facts(config.hardware.devices)
    folder = None if config.model.path is None else Path(paths.resolve_asset(config.model.path))
    if folder is not None and (folder / _MODEL_CONFIG).is_file():
        config = replace(config, model=replace(config.model, shape=shape.read_shape(folder)))
    if found := new_tokens.problems(config):
        raise UserError(found)
    own = None if config.hardware.deepspeed is None else read_settings("hardware.deepspeed", config.hardware.deepspeed)
    # What a teacher will say is not known yet.
    size = None if "answer" in config.stages else dataset.measure(config.data)
    plan = build.build(config, build.Facts(machine=machine, data=size, deepspeed=own), (*notes, *unread))
    # One process may have nothing to share, and does without DeepSpeed: a note says so.
    if own is not None and plan.train is not None and plan.train.placement.strategy == config.hardware.strategy:
        found = deepspeed.problems(own, plan.train.placement, max_grad_norm=config.train.max_grad_norm)
        if found:
            raise UserError(found)
    # Data are prepared where the command was typed: to look at them.
    wanted = config.cluster.kind in nodes.QUEUED_CLUSTERS and set(config.stages) != {"data"}
    queued = wanted and allocation.allocation(os.environ) is None
    obstacles = [
        *allocation.problems(config, os.environ, sys.argv[1:]),
        *readiness.problems(config, plan, None if queued else machine),
    ]
    return Prepared(config=config, plan=plan, obstacles=tuple(obstacles), is_queued=queued)


def require_ready(prepared: Prepared) -> None:
    """Refuses a plan that cannot run here.

    Raises:
        UserError: Names everything in the way.
    """
    if prepared.obstacles:
        raise UserError(prepared.obstacles)


def require_here(prepared: Prepared) -> None:
    """Refuses a plan that cannot run in this process: what follows needs its results.

    Raises:
        UserError: Names everything in the way.
    """
    if prepared.is_queued:
        what = f"this command waits for what it runs, and {prepared.config.cluster.kind} queues it."
        fix = "Start it within a job (srun --ntasks=1 tunerun ...), or choose cluster=local."
        raise UserError(Problem(where="cluster.kind", what=what, fix=fix))
    require_ready(prepared)


def require_one_node(prepared: Prepared) -> None:
    """Refuses nodes besides this one for a command that does not lead any.

    Raises:
        UserError: The config has several.
    """
    count = prepared.config.cluster.nodes
    if count > 1:
        what = f"a sweep runs its trials on this node, and {count} are asked for."
        fix = "Set cluster.nodes=1. A grid with cluster=slurm, typed outside of a job, queues each trial for its nodes."
        raise UserError(Problem(where="cluster.nodes", what=what, fix=fix))


def start(prepared: Prepared, typed: Typed) -> ExitCode:
    """Runs a plan here, or hands it to the cluster that it is for.

    Args:
        prepared: Without obstacles.
        typed: The command.
    """
    if prepared.is_queued:
        return submit.submit(prepared.plan, prepared.config, typed)
    return execute(prepared, typed.allow)


def execute(prepared: Prepared, allow: frozenset[str] = frozenset(), summarise: Summary = summary.render) -> ExitCode:
    """Runs a plan on this node: as the one that leads the others, or as one of these.

    Args:
        prepared: Without obstacles, and not queued.
        allow: Keys that may differ from those the run was trained with.
        summarise: As for `runner.execute`; only the leader has something to tell.
    """
    place = launch_nodes.meeting(prepared.config, os.environ)
    if place is None or place.is_leader:
        return runner.execute(prepared.plan, config=prepared.config, allow=allow, summarise=summarise)
    if prepared.plan.train is None:
        print(f"nothing to do on this node: {place.host} runs {', '.join(prepared.config.stages)} alone")
        return ExitCode.DONE
    return follower.follow(place, prepared.config)


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
        config.lock,
        data_sha256={str(_local(path)): digest for path, digest in config.lock.data_sha256.items()},
        files_sha256={str(_local(path)): digest for path, digest in config.lock.files_sha256.items()},
    )
    hardware = replace(
        config.hardware, deepspeed=_local(config.hardware.deepspeed), accelerate=_local(config.hardware.accelerate)
    )
    data = with_paths(config.data, lambda path: str(_local(path)))
    answer = replace(config.answer, prompts=tuple(str(_local(path)) for path in config.answer.prompts))
    evaluation = replace(
        config.eval,
        # A task may be named like a folder here.
        lm_eval=tuple(str(_local(name)) if name.endswith(TASK_SUFFIXES) else name for name in config.eval.lm_eval),
        lm_eval_tasks_dir=_local(config.eval.lm_eval_tasks_dir),
    )
    # Of a virtual environment's interpreter the link itself matters: what it leads to knows nothing of the packages.
    python = config.env.export.python
    env = replace(config.env, export=replace(config.env.export, python=_program(python)))
    config = replace(config, env=env, model=model, answer=answer, data=data, objective=objective, hardware=hardware)
    return replace(config, eval=evaluation, lock=lock)


def _program(name: str | None) -> str | None:
    """Makes the path of a program absolute; a bare name is looked up on the PATH, as a shell does."""
    return _local(name) if name is not None and os.sep in name else name


def _of_accelerate(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """Takes over what the file of `hardware.accelerate` says, once; returns notes on what is not read of it."""
    path = config.hardware.accelerate
    if path is None:
        return config, []
    content = read_settings("hardware.accelerate", path)
    named, own = accelerate.deepspeed_file(content), None
    if named is not None:
        beside = Path(path).parent.absolute() / Path(named).expanduser()
        own = read_settings("hardware.accelerate", str(beside))
        content = {**content, "deepspeed_config": {**content["deepspeed_config"], "deepspeed_config_file": str(beside)}}
    changed, found = accelerate.with_accelerate(config, content, own)
    # The rules between keys have not seen what the file says.
    problems = found or checks.check(changed)
    if problems:
        raise UserError(problems)
    return changed, accelerate.notes(content, changed)


def read_settings(key: str, path: str) -> dict[str, Any]:
    """Reads a file of settings; YAML reads JSON too.

    Args:
        key: That names the file.
        path: Of the file.

    Raises:
        UserError: It cannot be read, or holds no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(Problem(where=key, what=f"{path} cannot be read: {error.strerror}.")) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(Problem(where=key, what=f"{path} is neither JSON nor YAML.")) from error
    if not isinstance(content, dict):
        raise UserError(Problem(where=key, what=f"{path} is no mapping of settings."))
    return content


def _of_adapter(config: RunConfig) -> RunConfig:
    """Finds the adapter, and how its base was quantised if it is delivered or measured, and not trained here.

    Raises:
        UserError: What is asked for needs a quantised base, and the adapter was trained on another one.
    """
    adapter = _adapter(config.model.adapter)
    config = replace(config, model=replace(config.model, adapter=adapter))
    if adapter is None or "train" in config.stages:
        return config
    found = read_quantisation(Path(adapter))
    if found is not None:
        method = replace(config.method, kind="qlora", bits=found.bits, double_quant=found.double)
        config = replace(config, method=method)
    if problems := checks.merge_base(config):
        raise UserError(problems)
    return config


def _adapter(path: str | None) -> str | None:
    """Returns the adapter within a run or one of its checkpoints; other paths stay."""
    if path is None or artifacts.is_adapter(Path(path)):
        return path
    inner = Path(path) / artifacts.ADAPTER
    return str(inner) if artifacts.is_adapter(inner) else path


def _whole(path: str | None) -> str | None:
    """Returns the whole model within a run or one of its checkpoints; other paths stay."""
    if path is None or (Path(path) / _MODEL_CONFIG).is_file():
        return path
    inner = (Path(path) / name for name in (artifacts.CHECKPOINT_MODEL, artifacts.MERGED))
    return next((str(folder) for folder in inner if (folder / _MODEL_CONFIG).is_file()), path)


def _local(path: str | None) -> str | None:
    if path is None or path.startswith(paths.ASSET_SCHEME):
        return path
    found = Path(path).expanduser()
    return str(found.absolute()) if found.exists() else path
