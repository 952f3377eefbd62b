"""`tunerun lock RUN [NAME]`: a recipe of the run with model, data and packages pinned, to be committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tunerun import artifacts, paths
from tunerun.commands import arguments, copy
from tunerun.config.flat import flat_recipe
from tunerun.config.schema import DataConfig, LockConfig, RunConfig
from tunerun.errors import ExitCode, UserError
from tunerun.run import results
from tunerun.run.results import Results


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
    outside = [path for path in config.lock.data_sha256 if Path(path).is_absolute()]
    if outside:
        print(f"data outside this folder, which a clone will not have: {', '.join(outside)}")
    return ExitCode.DONE


def locked(found: Results) -> RunConfig:
    """Returns the config of a run with what it found pinned; paths below the current folder are relative to it."""
    record, config = found.record, found.config
    base = record.base_model or {}
    digests = {
        _relative(path): digest for path, digest in _data_files(record.data) if not path.startswith(paths.ASSET_SCHEME)
    }
    return replace(
        config,
        name=None,
        run_dir=None,
        model=replace(
            config.model,
            path=_relative(str(config.model.path)),
            revision=base["revision"] or config.model.revision,
        ),
        data=_pinned(config.data, found),
        lock=LockConfig(model_sha256=base["sha256"], data_sha256=digests, packages=dict(record.provenance["packages"])),
    )


def _data_files(recorded: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns path and hash of the data files, which a record names as `key path`."""
    split = [(*name.partition(" "), digest) for name, digest in recorded.items()]
    return [(path, digest) for key, space, path, digest in split if space and key.startswith("data.")]


def _pinned(data: DataConfig, found: Results) -> DataConfig:
    """Returns the data section with relative paths, and the commit of each hub's data set that the run read."""
    revisions = {
        source["file"]: source["revision"]
        for source in (found.data or {"sources": []})["sources"]
        if source["revision"] is not None
    }

    def pin(path: str) -> str:
        if path not in revisions:
            return _relative(path)
        name, _, parts = path.partition(":")
        return f"{name.partition('@')[0]}@{revisions[path]}{':' if parts else ''}{parts}"

    return replace(
        data,
        path=tuple(pin(path) for path in data.path),
        eval_path=tuple(pin(path) for path in data.eval_path),
        sources={
            name: replace(source, path=tuple(pin(path) for path in source.path))
            for name, source in data.sources.items()
        },
    )


def _relative(path: str) -> str:
    here = Path(path)
    inside = here.is_absolute() and here.is_relative_to(Path.cwd())
    return f"./{here.relative_to(Path.cwd())}" if inside else path
