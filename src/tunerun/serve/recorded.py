"""What a run recorded of the models in it, for whoever serves them."""

from __future__ import annotations

from pathlib import Path

from tunerun import artifacts
from tunerun.errors import Problem, UserError
from tunerun.formats.handoff import HANDOFF, Handoff, read_handoff

SERVE_FACTS = f"{artifacts.EXPORT}/{HANDOFF}"

# What serve.json speaks of, and whose folders hold their template.
_HANDED_OFF = (artifacts.EXPORT, artifacts.MERGED)


def handoff(run: Path) -> Handoff | None:
    """Reads serve.json of a run; None when nothing was exported."""
    return read_handoff(run / SERVE_FACTS) if (run / SERVE_FACTS).is_file() else None


def handoff_behind(path: Path) -> Handoff | None:
    """Reads serve.json of the run that exported or merged what lies at a path; None when no run did."""
    place = artifacts.locate(path)
    return handoff(place[0]) if place is not None and place[1] in _HANDED_OFF else None


def template(run: Path) -> str | None:
    """Returns the template that the run used instead of the model's own."""
    steps = artifacts.read_json(run / artifacts.PLAN)["steps"]
    choices = [step["chat_template"] for step in steps if "chat_template" in step]
    return next((choice for choice in choices if choice is not None), None)


def template_behind(path: Path) -> str | None:
    """Returns the template of an adapter or a checkpoint of a run; None for what holds its own, and for others."""
    place = artifacts.locate(path)
    if place is None or place[1] in _HANDED_OFF or not (place[0] / artifacts.PLAN).is_file():
        return None
    return template(place[0])


def checkpoint_steps(run: Path) -> list[int]:
    """Returns the steps that a run has checkpoints of, in order."""
    prefix = artifacts.CHECKPOINT_PREFIX
    found = (run / artifacts.CHECKPOINTS).glob(f"{prefix}*")
    return sorted(int(step) for folder in found if (step := folder.name.removeprefix(prefix)).isdecimal())


def inside(run: Path, adapter: Path) -> Path:
    """Returns the adapter if it lies in the run, whatever links lead there.

    Raises:
        UserError: It lies elsewhere.
    """
    if adapter.resolve().is_relative_to(run.resolve()):
        return adapter
    what = f"is a link to {adapter.resolve()}, outside the run."
    raise UserError(Problem(where=str(adapter), what=what, fix="Serve that folder by its own path."))


def require_text(weights: Path, adapter: Path | None) -> None:
    """Refuses what writes no text: a model or an adapter that gives a score, as reward models do.

    Raises:
        UserError: It is one.
    """
    config = weights / "config.json"
    heads = artifacts.read_json(config).get("architectures") if config.is_file() else None
    scores = any(str(head).endswith("ForSequenceClassification") for head in heads or ())
    facts = None if adapter is None else adapter / artifacts.ADAPTER_CONFIG
    scores |= facts is not None and facts.is_file() and artifacts.read_json(facts).get("task_type") == "SEQ_CLS"
    if scores:
        what = "is a reward model: it gives scores and writes no text."
        raise UserError(Problem(where=str(adapter or weights), what=what, fix="Load it with transformers or TRL."))
