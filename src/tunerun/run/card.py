"""README.md of a run: a model card that says what was made from what, how well, and what it is not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tunerun import __version__, artifacts, markdown, redact
from tunerun.config.data_sources import data_paths
from tunerun.config.schema import Published
from tunerun.formats import verdicts
from tunerun.launch.terminal import size
from tunerun.paths import looks_local
from tunerun.plan.steps import PublishStep
from tunerun.run import results
from tunerun.run.results import Results
from tunerun.run.summary import digits


def write(run_dir: Path, secrets: tuple[str, ...]) -> None:
    """Writes README.md from the run's files.

    Args:
        run_dir: The run directory.
        secrets: Values that must not appear, from `redact.secret_values`.
    """
    artifacts.write_text(run_dir / artifacts.CARD, redact.values(render(results.read(run_dir)), secrets))


def write_published(run_dir: Path, step: PublishStep, secrets: tuple[str, ...]) -> None:
    """Writes publish/README.md, the card that goes with the files to a hub.

    Args:
        run_dir: The run directory.
        step: What is published.
        secrets: Values that must not appear, from `redact.secret_values`.
    """
    text = render_published(results.read(run_dir), step)
    artifacts.write_text(run_dir / artifacts.PUBLISH / artifacts.CARD, redact.values(text, secrets))


def render(found: Results) -> str:
    """Lays the card of a run out; its header is what model hubs read."""
    library = "peft" if (found.run_dir / artifacts.ADAPTER).is_dir() else "transformers"
    status = ""
    if found.record.status != "done":
        status = f"**This run is {found.record.status}: what is here may be incomplete.**"
    base = found.base_model
    head = [*_header(found, base, library), status, _origin(found, base)]
    return _join([*head, *_body(found), _use(found), _limits(found, base)])


def render_published(found: Results, step: PublishStep) -> str:
    """Lays the card out for a hub: how the files are used there, and nothing of this machine."""
    assert found.base_model is not None, "what is published came from one"
    hidden = looks_local(found.base_model)
    base = Path(found.base_model).name if hidden else found.base_model
    library = _LIBRARIES[step.artifacts[0]] if step.artifacts else "transformers"
    head = [*_header(found, None if hidden else base, library), _origin(found, base)]
    return _join([*head, *_body(found), _use_from_hub(step), _limits(found, base)])


_LIBRARIES: dict[Published, str] = {
    "merged": "transformers",
    "adapter": "peft",
    "gguf": "gguf",
    "bnb4": "transformers",
    "gptq": "transformers",
    "awq": "transformers",
    "fp8": "transformers",
}


def _join(sections: Sequence[str]) -> str:
    return "\n\n".join(section for section in sections if section) + "\n"


def _body(found: Results) -> list[str]:
    return [_method(found), _measures(found), _answers(found)]


def _header(found: Results, base: str | None, library: str) -> list[str]:
    config = found.config
    # A JSON string is one of YAML.
    named = [f"base_model: {json.dumps(base, ensure_ascii=False)}"] if base else []
    lines = ["---", *named, f"library_name: {library}"]
    lines += ["tags:", "- tunerun", f"- {config.objective.kind}", f"- {config.method.kind}", "---"]
    return ["\n".join(lines), f"# {found.record.name}"]


def _origin(found: Results, base: str | None) -> str:
    config, lines = found.config, []
    if base is None:
        return f"Answers of `{config.answer.model}`, collected by tunerun {__version__}."
    if found.verification is not None and not found.verification["passed"]:
        lines += ["**Unverified: a gate failed (see verify/report.json). Do not publish or serve these files.**", ""]
    revision = found.record.base_model["revision"] if found.record.base_model is not None else None
    lines.append(
        f"`{base}`{f' (revision {revision})' if revision else ''}, "
        f"{config.objective.kind} with {config.method.kind}, made by tunerun {__version__}."
        if "train" in found.record.stages
        else f"`{base}`, processed by tunerun {__version__} without training."
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
    return f"## Training\n\n{markdown.table(('setting', 'value'), rows)}\n\nData:\n\n{sources}"


def _measures(found: Results) -> str:
    if found.evaluation is None:
        return ""
    rows = [
        (name, digits(values["loss"]), digits(values["perplexity"]))
        for name, values in found.evaluation["models"].items()
    ]
    where = "held-out" if found.evaluation["split"] == "eval" else "training"
    text = f"Mean loss per token on {found.evaluation['rows']:,} {where} rows."
    parts = ["## Evaluation", markdown.table(("model", "loss", "perplexity"), rows), text]
    tasks = [(item.task, item.metric, *item.texts) for item in found.tasks()]
    if tasks:
        parts.append(markdown.table(("task", "metric", "base", "tuned")[: len(tasks[0])], tasks))
    return "\n\n".join(parts)


def _answers(found: Results) -> str:
    rows = [(prompt, base, tuned or "") for prompt, base, tuned in found.answers()]
    return f"## Answers\n\n{markdown.table(('question', 'base', 'tuned'), rows)}" if rows else ""


def _use(found: Results) -> str:
    made = [item for entry in found.record.stages.values() for item in entry.artifacts]
    files = [(f"`{item.path}`", item.kind, size(item.bytes)) for item in made]
    if not files:
        return ""
    commands = "```\ntunerun chat .\ntunerun serve .\n```"
    return f"## Use\n\n{commands}\n\n{markdown.table(('file', 'kind', 'size'), files)}"


def _use_from_hub(step: PublishStep) -> str:
    repo, kinds = step.publish.repo, step.artifacts or ("merged",)
    folder = f", subfolder={step.publish.folder!r}" if step.publish.folder else ""
    parts = []
    if kinds[0] in ("merged", "bnb4", "gptq", "awq", "fp8"):
        parts.append(
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"tokenizer = AutoTokenizer.from_pretrained({repo!r}{folder})\n"
            f"model = AutoModelForCausalLM.from_pretrained({repo!r}{folder})\n```"
        )
    if "adapter" in kinds:
        parts.append(
            "```python\nfrom peft import AutoPeftModelForCausalLM\n\n"
            f"model = AutoPeftModelForCausalLM.from_pretrained({repo!r}{folder})\n```"
        )
    if "gguf" in kinds and step.publish.hub == "hf":
        parts.append(f"```\nllama-server -hf {repo}\nollama run hf.co/{repo}\n```")
    return "## Use\n\n" + "\n\n".join(parts) if parts else ""


def _limits(found: Results, base: str | None) -> str:
    if base is None:
        return ""
    lines = [
        f"- It inherits the knowledge, the faults and the licence of `{base}`; check that licence.",
        "- What it learned is no better than the rows it was trained on; nothing here measures safety or truth.",
    ]
    if found.evaluation is not None and found.evaluation["split"] == "train":
        lines.append("- No rows were held out: the loss above says nothing about new questions.")
    if found.verification is None:
        lines.append("- The exported files were not verified against the trained weights.")
    elif unproved := verdicts.unproved(found.run_dir):
        lines.append(f"- Not everything could be verified: {unproved}.")
    return "## Limits\n\n" + "\n".join(lines)
