"""`tunerun lock RUN [NAME]`: a recipe of the run with model, data and packages pinned, to be committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tunerun import artifacts, fits, paths
from tunerun.base_model import read_teacher
from tunerun.commands import arguments, copy
from tunerun.commands.prepare import read_settings
from tunerun.config.data_sources import at_commit, data_paths, with_paths
from tunerun.config.flat import flat_recipe
from tunerun.config.schema import LockConfig, RunConfig, TrainConfig
from tunerun.errors import ExitCode, Problem, UserError
from tunerun.hashes import path_sha256
from tunerun.plan import deepspeed
from tunerun.plan import plan as plans
from tunerun.run import results
from tunerun.run.record import Record
from tunerun.run.results import Results

# They carry results or models to and fro, and change none.
_WITHOUT_EFFECT = frozenset({"huggingface-hub", "modelscope", "tensorboard", "vllm", "wandb"})


def main(argv: Sequence[str]) -> int:
    """Writes `recipes/NAME.yaml`, which refuses to run where model, data, other files or packages are others.

    Args:
        argv: The run directory, and optionally a name for the recipe.

    Raises:
        UserError: The folder is no run that ended well, a file is not what was read, or the recipe exists.
    """
    _, rest = arguments.split(argv, flags=(), values=())
    if not 1 <= len(rest) <= 2:
        raise UserError("name a run, and optionally the recipe: tunerun lock outputs/quickstart/RUN mine")
    found = results.read(Path(rest[0]))
    if found.record.status != "done":
        raise UserError(f"{rest[0]} did not run to its end ({found.record.status}); only what is done is pinned.")
    target = copy.target(rest[1] if len(rest) == 2 else f"{found.record.name}-locked")
    config = locked(found)
    comment = f"{found.record.name} of {found.record.created[:10]}, with model, files and packages pinned."
    artifacts.write_text(target, flat_recipe(config, comment))
    print(f"{target}: commit it, and run it with tunerun +recipe={target.stem}")
    outside = [path for path in _paths(config) if Path(path).is_absolute()]
    if outside:
        print(f"outside this folder, so that a clone will not have it: {', '.join(outside)}")
    return ExitCode.DONE


def locked(found: Results) -> RunConfig:
    """Returns the config of a run with what it found pinned; paths below the current folder are relative to it.

    Raises:
        UserError: A file whose hash the record lacks is not what the run read.
    """
    record, config, commits = found.record, found.config, found.commits()
    base = record.base_model
    # Without weights, as for stages=[data], the hash is that of the tokenizer and config alone.
    sha256 = base["sha256"] if base is not None and record.stages["model"].keys["weights"] else None
    packages = {name: version for name, version in record.provenance["packages"].items() if name not in _WITHOUT_EFFECT}
    return replace(
        config,
        name=None,
        run_dir=None,
        model=replace(
            config.model,
            path=_relative(config.model.path),
            revision=(None if base is None else base["revision"]) or config.model.revision,
            adapter=_relative(config.model.adapter),
            chat_template=_relative(config.model.chat_template),
        ),
        answer=replace(config.answer, prompts=tuple(str(_relative(path)) for path in config.answer.prompts)),
        data=with_paths(config.data, lambda path: str(_relative(at_commit(path, commits)))),
        train=_fitted(config.train, found.run_dir),
        objective=replace(config.objective, teacher=_relative(config.objective.teacher)),
        hardware=replace(config.hardware, deepspeed=_relative(config.hardware.deepspeed)),
        eval=replace(
            config.eval,
            lm_eval=tuple(str(_relative(name)) for name in config.eval.lm_eval),
            lm_eval_tasks_dir=_relative(config.eval.lm_eval_tasks_dir),
        ),
        lock=LockConfig(
            model_sha256=sha256,
            teacher_sha256=_teacher(found),
            data_sha256=_hashes(record, data=True),
            files_sha256={**_hashes(record, data=False), **_deepspeed(found)},
            packages=packages,
        ),
    )


def _fitted(train: TrainConfig, run_dir: Path) -> TrainConfig:
    """Pins what training was left with when memory ran out."""
    found = fits.read(run_dir)
    if not found:
        return train
    recomputes = found[-1].activation_checkpointing or train.activation_checkpointing
    return replace(train, micro_batch_size=found[-1].micro_batch_size, activation_checkpointing=recomputes)


def _hashes(record: Record, *, data: bool) -> dict[str, str]:
    """Returns the recorded hashes of the user's files by path: those of data, or all others."""
    named = [(*name.partition(" "), digest) for name, digest in record.files.items()]
    return {
        str(_relative(path)): digest
        for key, _, path, digest in named
        if key.startswith(("answer.", "data.")) == data and not path.startswith(paths.ASSET_SCHEME)
    }


def _teacher(found: Results) -> str | None:
    is_there = (found.run_dir / artifacts.TEACHER).is_file()
    return read_teacher(found.run_dir).sha256 if is_there and found.config.objective.kind == "distill" else None


def _deepspeed(found: Results) -> dict[str, str]:
    """Returns the hash of the user's config of DeepSpeed by its path, if it still says what the run did.

    One that accelerate's config names is among the run's keys too; what else that one says has become keys.
    """
    path = found.config.hardware.deepspeed
    if path is None:
        return {}
    train = plans.read(found.run_dir / artifacts.PLAN).train
    own = read_settings("hardware.deepspeed", path)
    # Where one process had nothing to share, it was not read.
    if train is not None and train.deepspeed:
        now = deepspeed.deepspeed_config(train.placement, max_grad_norm=train.train.max_grad_norm, own=own)
        if now != train.deepspeed:
            what = f"{path} is not what the run was trained with."
            fix = f"Put its settings back: the run keeps what came of them in {found.run_dir}/launch/deepspeed.json."
            raise UserError(Problem(where="hardware.deepspeed", what=what, fix=fix))
    return {str(_relative(path)): path_sha256(Path(path), "files")}


def _paths(config: RunConfig) -> list[str]:
    """Returns what the recipe reads from a disk or a hub."""
    model = config.model
    named = [
        model.path,
        model.adapter,
        model.chat_template,
        config.objective.teacher,
        config.hardware.deepspeed,
        config.eval.lm_eval_tasks_dir,
    ]
    return [
        *(path for path in named if path is not None),
        *config.answer.prompts,
        *config.eval.lm_eval,
        *(path for _, path in data_paths(config.data)),
    ]


def _relative(path: str | None) -> str | None:
    # With `..` in it, it may lead out again.
    if path is None or not Path(path).is_relative_to(Path.cwd()) or ".." in Path(path).parts:
        return path
    return f"./{Path(path).relative_to(Path.cwd())}"
