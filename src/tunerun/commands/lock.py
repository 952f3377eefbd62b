"""`tunerun lock RUN [NAME]`: a recipe of the run with model, data and packages pinned, to be committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tunerun import artifacts, fits, paths
from tunerun.commands import arguments, copy
from tunerun.config.data_sources import at_commit, data_paths, with_paths
from tunerun.config.flat import flat_recipe
from tunerun.config.schema import LockConfig, RunConfig, TrainConfig
from tunerun.errors import ExitCode, UserError
from tunerun.run import results
from tunerun.run.results import Results

# They carry results or models to and fro, and change none.
_WITHOUT_EFFECT = frozenset({"huggingface-hub", "modelscope", "tensorboard", "vllm", "wandb"})


def main(argv: Sequence[str]) -> int:
    """Writes `recipes/NAME.yaml`, which refuses to run where model, data or packages are others.

    Args:
        argv: The run directory, and optionally a name for the recipe.

    Raises:
        UserError: The folder is no run that ended well, or the recipe exists.
    """
    _, rest = arguments.split(argv, flags=(), values=())
    if not 1 <= len(rest) <= 2:
        raise UserError("name a run, and optionally the recipe: tunerun lock outputs/quickstart/RUN mine")
    found = results.read(Path(rest[0]))
    if found.record.status != "done":
        raise UserError(f"{rest[0]} did not run to its end ({found.record.status}); only what is done is pinned.")
    target = copy.target(rest[1] if len(rest) == 2 else f"{found.record.name}-locked")
    config = locked(found)
    comment = f"{found.record.name} of {found.record.created[:10]}, with model, data and packages pinned."
    artifacts.write_text(target, flat_recipe(config, comment))
    print(f"{target}: commit it, and run it with tunerun +recipe={target.stem}")
    outside = [path for path in _paths(config) if Path(path).is_absolute()]
    if outside:
        print(f"outside this folder, so that a clone will not have it: {', '.join(outside)}")
    return ExitCode.DONE


def locked(found: Results) -> RunConfig:
    """Returns the config of a run with what it found pinned; paths below the current folder are relative to it."""
    record, config, commits = found.record, found.config, found.commits()
    base = record.base_model
    assert base is not None, "a run that is done has its model"
    answered = record.stages["answer"].files if "answer" in record.stages else {}
    digests = {
        str(_relative(path)): digest
        for path, digest in _data_files({**answered, **record.data})
        if not path.startswith(paths.ASSET_SCHEME)
    }
    # Without weights, as for stages=[data], the hash is that of the tokenizer and config alone.
    sha256 = base["sha256"] if record.stages["model"].keys["weights"] else None
    packages = {name: version for name, version in record.provenance["packages"].items() if name not in _WITHOUT_EFFECT}
    return replace(
        config,
        name=None,
        run_dir=None,
        model=replace(
            config.model,
            path=_relative(config.model.path),
            revision=base["revision"] or config.model.revision,
            adapter=_relative(config.model.adapter),
            chat_template=_relative(config.model.chat_template),
        ),
        answer=replace(config.answer, prompts=tuple(str(_relative(path)) for path in config.answer.prompts)),
        data=with_paths(config.data, lambda path: str(_relative(at_commit(path, commits)))),
        train=_fitted(config.train, found.run_dir),
        objective=replace(config.objective, teacher=_relative(config.objective.teacher)),
        lock=LockConfig(model_sha256=sha256, data_sha256=digests, packages=packages),
    )


def _fitted(train: TrainConfig, run_dir: Path) -> TrainConfig:
    """Pins what training was left with when memory ran out."""
    found = fits.read(run_dir)
    if not found:
        return train
    recomputes = found[-1].activation_checkpointing or train.activation_checkpointing
    return replace(train, micro_batch_size=found[-1].micro_batch_size, activation_checkpointing=recomputes)


def _data_files(recorded: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns path and hash of the data files, which a record names as `key path`."""
    split = [(*name.partition(" "), digest) for name, digest in recorded.items()]
    return [(path, digest) for key, space, path, digest in split if space and key.startswith(("answer.", "data."))]


def _paths(config: RunConfig) -> list[str]:
    """Returns what the recipe reads from a disk or a hub."""
    model = config.model
    named = [model.path, model.adapter, model.chat_template, config.objective.teacher]
    return [
        *(path for path in named if path is not None),
        *config.answer.prompts,
        *(path for _, path in data_paths(config.data)),
    ]


def _relative(path: str | None) -> str | None:
    # With `..` in it, it may lead out again.
    if path is None or not Path(path).is_relative_to(Path.cwd()) or ".." in Path(path).parts:
        return path
    return f"./{Path(path).relative_to(Path.cwd())}"
