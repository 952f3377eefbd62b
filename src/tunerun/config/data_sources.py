"""The sources of a run's data, each with its settings filled in from the section's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from tunerun.config.schema import DataConfig, SourceConfig


def data_sources(data: DataConfig) -> tuple[SourceConfig, ...]:
    """Returns what `data.sources` names, in its order, or else the one source that `data.path` is."""
    sources = tuple(data.sources.values()) or (SourceConfig(path=data.path),)
    return tuple(
        replace(
            source,
            format=source.format or data.format,
            columns=source.columns or data.columns,
            sheet=data.sheet if source.sheet is None else source.sheet,
            system=data.system if source.system is None else source.system,
            max_rows=data.max_rows if source.max_rows is None else source.max_rows,
        )
        for source in sources
    )


def holds_out(data: DataConfig) -> bool:
    """Says whether rows are kept for evaluation."""
    return bool(data.eval_path or data.eval_fraction or data.eval_rows)


def data_paths(data: DataConfig) -> tuple[tuple[str, str], ...]:
    """Returns every path that the data are read from, each after the key that names it."""
    named = [(f"data.sources.{name}.path", path) for name, source in data.sources.items() for path in source.path]
    trained = named or [("data.path", path) for path in data.path]
    return (*trained, *(("data.eval_path", path) for path in data.eval_path))


def with_paths(data: DataConfig, change: Callable[[str], str]) -> DataConfig:
    """Returns the section with every path that the data are read from changed alike."""
    return replace(
        data,
        path=tuple(map(change, data.path)),
        eval_path=tuple(map(change, data.eval_path)),
        sources={name: replace(source, path=tuple(map(change, source.path))) for name, source in data.sources.items()},
    )


def at_commit(path: str, commits: Mapping[str, str]) -> str:
    """Returns the address of a hub's data set with the commit that a run read of it; other paths stay.

    Args:
        path: `org/name@revision:config:split`, all but the name optional, or the path of a file or folder.
        commits: By such an address.
    """
    if path not in commits:
        return path
    name, colon, parts = path.partition(":")
    return f"{name.partition('@')[0]}@{commits[path]}{colon}{parts}"
