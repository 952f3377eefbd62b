"""The sources of a run's data, each with its settings filled in from the section's."""

from __future__ import annotations

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
