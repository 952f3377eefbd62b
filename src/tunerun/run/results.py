"""What the stages of a run reported, as far as they ran: read once for summary, report and model card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunerun import artifacts
from tunerun.config.schema import RunConfig, TrainConfig
from tunerun.run import record, rundir
from tunerun.run.record import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """A metric of an evaluation task."""

    task: str
    metric: str
    base: Mapping[str, Any]
    """`value` and `stderr` of the base model."""
    tuned: Mapping[str, Any] | None
    """The same of the tuned one, where there is one."""

    @property
    def texts(self) -> list[str]:
        """Value and standard error of each model."""
        found = [self.base] if self.tuned is None else [self.base, self.tuned]
        return [
            f"{item['value']:.4g}" + ("" if item["stderr"] is None else f" ± {item['stderr']:.2g}") for item in found
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """A run's record, config and reports; a report is None when its stage did not run to its end."""

    run_dir: Path
    record: Record
    config: RunConfig
    teacher: Mapping[str, Any] | None
    """The report on a teacher's answers."""
    data: Mapping[str, Any] | None
    failed_data: Mapping[str, Any] | None
    """The data report of a run whose rows could not be used."""
    evaluation: Mapping[str, Any] | None
    verification: Mapping[str, Any] | None
    metrics: Sequence[Mapping[str, Any]]
    """Rows of metrics.jsonl."""

    @property
    def base_model(self) -> str | None:
        """What the run started from; None where it only collected answers."""
        found = self.record.base_model
        return self.config.model.path if found is None else str(found["path"])

    def measured(self, model: str) -> Mapping[str, Any] | None:
        """Returns what was measured of `base` or `tuned`."""
        if self.evaluation is None or model not in self.evaluation["models"]:
            return None
        found: Mapping[str, Any] = self.evaluation["models"][model]
        return found

    def commits(self) -> dict[str, str]:
        """Returns the commit that was read of each data set of a hub, by what the config calls it."""
        sources = self.data["sources"] if self.data is not None else []
        # The report adds the sheet of a workbook in brackets.
        named = ((source["file"].partition(" (")[0], source["revision"]) for source in sources)
        return {name: revision for name, revision in named if revision is not None}

    def answers(self) -> list[tuple[str, str, str | None]]:
        """Returns prompt, the base model's answer, and the tuned model's answer where there is one."""
        base, tuned = self.measured("base"), self.measured("tuned")
        if base is None:
            return []
        after = [item["answer"] for item in tuned["answers"]] if tuned is not None else [None] * len(base["answers"])
        return [(item["prompt"], item["answer"], answer) for item, answer in zip(base["answers"], after, strict=True)]

    def tasks(self) -> list[TaskResult]:
        """Returns what came of evaluation tasks, one for each metric."""
        base, tuned = self.measured("base"), self.measured("tuned")
        if base is None or "tasks" not in base:
            return []
        after = {} if tuned is None else tuned["tasks"]
        found = []
        for task, measured in base["tasks"].items():
            for index, metric in enumerate(measured["metrics"]):
                label = metric["name"] if metric["filter"] == "none" else f"{metric['name']} ({metric['filter']})"
                then = after[task]["metrics"][index] if after else None
                found.append(TaskResult(task=task, metric=label, base=metric, tuned=then))
        return found


def read(run_dir: Path) -> Results:
    """Reads what is there.

    Raises:
        UserError: It is not a run, or its record or config cannot be read.
    """
    return Results(
        run_dir=run_dir,
        record=record.read(run_dir),
        config=rundir.load_config(run_dir),
        teacher=_report((run_dir / artifacts.ANSWERS).parent),
        data=_data_report(run_dir / artifacts.DATA),
        failed_data=_data_report(run_dir / artifacts.FAILED_DATA),
        evaluation=_report(run_dir / artifacts.EVAL),
        verification=_report(run_dir / artifacts.VERIFY),
        metrics=_metrics(run_dir / artifacts.METRICS),
    )


def training_volume(data: Mapping[str, Any], train: TrainConfig) -> str:
    """Says how many optimiser steps training takes on prepared data, as `train` counts them.

    Args:
        data: The data stage's report.
        train: The section `train`.
    """
    per_epoch = -(-data["rows"] // train.global_batch_size)
    rows = f"{data['rows']:,} {'packed rows' if data['packing_fill'] is not None else 'rows'}"
    if train.max_steps is not None:
        epochs, steps = train.max_steps / per_epoch, train.max_steps
    else:
        epochs, steps = train.epochs, max(1, math.ceil(train.epochs * per_epoch))
    counted = f"{epochs:.3g} {'epoch' if epochs == 1 else 'epochs'}"
    return f"{steps:,} optimiser steps, {counted} of {rows}, {train.global_batch_size} in a step"


def _report(folder: Path) -> Mapping[str, Any] | None:
    path = folder / artifacts.STAGE_REPORT
    return artifacts.read_versioned(path, artifacts.REPORT_SCHEMA)[1] if path.is_file() else None


def _data_report(folder: Path) -> Mapping[str, Any] | None:
    """Reads the report of the data stage; schema 1 lacked what is empty here."""
    path = folder / artifacts.STAGE_REPORT
    if not path.is_file():
        return None
    schema, found = artifacts.read_versioned(path, artifacts.DATA_SCHEMA)
    if schema == artifacts.DATA_SCHEMA:
        return found
    added = dict.fromkeys(("duplicates", "overlap", "sides", "labels"))
    sources = [{"weight": 1.0, **source} for source in found["sources"]]
    return {**added, "unreadable": [], **found, "sources": sources}


def _metrics(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # What follows the last line end was cut off by a kill.
    return [json.loads(line) for line in lines[:-1]]
