"""README.md of a run: a model card that says what was made from what, how well, and what it is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunerun import __version__, artifacts
from tunerun.config.data_sources import data_paths
from tunerun.launch.terminal import size
from tunerun.paths import looks_local
from tunerun.run import redact, results
from tunerun.run.results import Results


def write(run_dir: Path, secrets: tuple[str, ...]) -> None:
    """Writes README.md from the run's files.

    Args:
        run_dir: The run directory.
        secrets: Values that must not appear, from `redact.secret_values`.
    """
    artifacts.write_text(run_dir / artifacts.CARD, redact.values(render(results.read(run_dir)), secrets))


def render(found: Results) -> str:
    """Lays the card out; its header is what model hubs read."""
    sections = [_head(found), _method(found), _measures(found), _answers(found), _use(found), _limits(found)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(found: Results) -> str:
    config = found.config
    library = "peft" if (found.run_dir / artifacts.ADAPTER).is_dir() else "transformers"
    lines = ["---", f"base_model: {_yaml(found.base_model)}", f"library_name: {library}", "tags:", "- tunerun"]
    lines += [f"- {config.objective.kind}", f"- {config.method.kind}", "---", "", f"# {found.record.name}", ""]
    if found.record.status != "done":
        lines += [f"**This run is {found.record.status}: what is here may be incomplete.**", ""]
    if found.verification is not None and not found.verification["passed"]:
        lines += ["**Unverified: a gate failed (see verify/report.json). Do not publish or serve these files.**", ""]
    revision = found.record.base_model["revision"] if found.record.base_model is not None else None
    lines.append(
        f"`{found.base_model}`{f' (revision {revision})' if revision else ''}, "
        f"{config.objective.kind} with {config.method.kind}, made by tunerun {__version__}."
        if "train" in found.record.stages
        else f"`{found.base_model}`, processed by tunerun {__version__} without training."
    )
    return "\n".join(lines)


def _method(found: Results) -> str:
    config = found.config
    if "train" not in found.record.stages:
        return ""
    rows: list[tuple[str, ...]] = [("objective", config.objective.kind), ("method", config.method.kind)]
    if (found.run_dir / artifacts.ADAPTER).is_dir():
        rows.append(
            ("rank, alpha, dropout", f"{config.method.rank}, {config.method.alpha:g}, {config.method.dropout:g}")
        )
    if config.method.kind == "qlora":
        merged = "the original weights" if config.export.merge_base == "full_precision" else "the quantised base"
        rows.append(("base in training", f"{config.method.bits} bits; the adapter is merged into {merged}"))
    if config.method.kind == "freeze":
        rows.append(("trained", ", ".join([f"last {config.method.layers} layers", *config.method.patterns])))
    steps = [row["step"] for row in found.metrics if "loss" in row]
    rows += [
        ("optimiser steps", f"{steps[-1]:,}" if steps else "0"),
        ("samples in a step", str(config.train.global_batch_size)),
        ("learning rate", f"{config.train.learning_rate:g}, {config.train.schedule}"),
        ("seed", str(config.seed)),
        ("longest row", f"{config.data.max_length:,} tokens" if config.data.max_length else "as in the data"),
    ]
    if found.data is not None:
        data = found.data
        rows.append(("data", f"{data['rows_kept']:,} of {data['rows_read']:,} rows, {data['tokens']:,} tokens"))
        rows.append(("trained tokens", f"{data['trained_tokens']:,}"))
    # Of a local path only the name: where a user keeps files is not for the world.
    paths = [path for key, path in data_paths(config.data) if key != "data.eval_path"]
    lines = [f"- `{Path(path).name if looks_local(path) else path}`" for path in paths]
    if found.teacher is not None:
        names = ", ".join(f"`{name}`" for name in found.teacher["models"])
        lines.append(
            f"- {found.teacher['rows']:,} answers of {names}; see what its licence says of models trained on them"
        )
    sources = "\n".join(lines)
    return f"## Training\n\n{_table(('setting', 'value'), rows)}\n\nData:\n\n{sources}"


def _measures(found: Results) -> str:
    if found.evaluation is None:
        return ""
    rows = [
        (name, _number(values["loss"]), _number(values["perplexity"]))
        for name, values in found.evaluation["models"].items()
    ]
    where = "held-out" if found.evaluation["split"] == "eval" else "training"
    text = f"Mean loss per token on {found.evaluation['rows']:,} {where} rows."
    parts = ["## Evaluation", _table(("model", "loss", "perplexity"), rows), text]
    tasks = [(item.task, item.metric, *item.texts) for item in found.tasks()]
    if tasks:
        parts.append(_table(("task", "metric", "base", "tuned")[: len(tasks[0])], tasks))
    return "\n\n".join(parts)


def _answers(found: Results) -> str:
    rows = [(prompt, base, tuned or "") for prompt, base, tuned in found.answers()]
    return f"## Answers\n\n{_table(('question', 'base', 'tuned'), rows)}" if rows else ""


def _use(found: Results) -> str:
    made = [item for entry in found.record.stages.values() for item in entry.artifacts]
    files = [(f"`{item.path}`", item.kind, size(item.bytes)) for item in made]
    if not files:
        return ""
    commands = "```\ntunerun chat .\ntunerun serve .\n```"
    return f"## Use\n\n{commands}\n\n{_table(('file', 'kind', 'size'), files)}"


def _limits(found: Results) -> str:
    lines = [
        f"- It inherits the knowledge, the faults and the licence of `{found.base_model}`; check that licence.",
        "- What it learned is no better than the rows it was trained on; nothing here measures safety or truth.",
    ]
    if found.evaluation is not None and found.evaluation["split"] == "train":
        lines.append("- No rows were held out: the loss above says nothing about new questions.")
    if found.verification is None:
        lines.append("- The exported files were not verified against the trained weights.")
    return "## Limits\n\n" + "\n".join(lines)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [_row(head), _row(("---",) * len(head)), *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    # Text of a model may hold what Markdown would read as a table, a line end or HTML.
    safe = (cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;") for cell in cells)
    return "| " + " | ".join("<br>".join(cell.splitlines()) for cell in safe) + " |"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _yaml(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
