"""Keys of the section `data`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tunerun.config.schema.kinds import DataFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """One of several sources that are mixed."""

    path: tuple[str, ...] = ()
    """File, folder, hub id, or list of these."""
    weight: float = 1.0
    """Times each row is in an epoch: 0.5 takes half of the rows, chosen by hash, 2 takes each twice."""
    format: DataFormat | None = None
    """How rows are read; `data.format` when null."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of each part; `data.columns` when empty."""
    sheet: str | None = None
    """Sheet of a workbook; `data.sheet` when null."""
    system: str | None = None
    """System prompt for rows that have none; `data.system` when null."""
    max_rows: int | None = None
    """Use only the first rows; `data.max_rows` when null."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which rows to train on, and how they become tokens."""

    path: tuple[str, ...] = ()
    """File, folder, hub id of a data set (`org/name`, `org/name@revision:config:split`), or list of these."""
    sources: Mapping[str, SourceConfig] = field(default_factory=dict)
    """Several sources by a name of your own, each with its settings, instead of `path`."""
    format: DataFormat = "auto"
    """How rows are read; `auto` looks at the first rows."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of each part (system, user, assistant, text, chosen, rejected, label) by its name, in a workbook also by
    its letter: `{user: question, assistant: D}`; parts that are not named are found."""
    sheet: str | None = None
    """Sheet of a workbook (.xlsx); null takes the only one that has rows."""
    vars: Mapping[str, str] = field(default_factory=dict)
    """Values for `{{name}}`-style placeholders in the rows. One without a value is an error where it stands as a word;
    in code, LaTeX and markup, and in plain text to pre-train on, it is left alone."""
    system: str | None = None
    """System prompt for rows that have none."""
    system_override: bool = False
    """Whether `system` replaces the rows' own system prompts too; an empty one removes them."""
    hub: Literal["hf", "modelscope"] = "hf"
    """Where the ids of data sets are looked up."""
    streaming: bool = False
    """Read a hub's data set row by row as it comes, keeping no copy; `max_rows` says how much of it."""
    eval_path: tuple[str, ...] = ()
    """Rows to evaluate on, kept apart; replaces `eval_fraction` and `eval_rows`."""
    eval_fraction: float = 0.0
    """Share of each source held out for evaluation, 0 to 0.5; chosen by hash, so stable when rows are appended."""
    eval_rows: int | None = None
    """Number of rows held out instead of a share, spread over the sources in proportion."""
    drop_duplicates: bool = False
    """Leave out rows that were there before, and training rows that are among the evaluation rows."""
    max_rows: int | None = None
    """Use only the first rows of the data, for a quick try."""
    max_length: int | None = 2048
    """Longest row, in tokens; null takes rows as long as they are, up to the model's context."""
    too_long: Literal["truncate_prompt", "truncate", "drop", "split", "fail"] = "truncate_prompt"
    """A longer row: cut the middle of its longest prompt texts, cut its end, drop it, make several rows of it, or fail
    the run."""
    multi_turn: Literal["whole", "split"] = "whole"
    """`split` makes each assistant turn a row of its own, rendered as it will be served."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Which tokens are learned: all assistant turns, the last one only, or every token."""
    packing: bool = False
    """Put several short rows into one of `max_length`; they do not attend to each other."""
    on_bad_rows: Literal["fail", "drop"] = "fail"
    """Whether a malformed row fails the run or is dropped and counted."""
    max_dropped_fraction: float = 0.01
    """Share of rows that may be dropped before the run fails all the same."""
    cache: bool = True
    """Keep the prepared data in the user's cache, where later runs with the same data and settings find them."""
