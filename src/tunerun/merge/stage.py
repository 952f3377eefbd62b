"""Runs the merge stage."""

from __future__ import annotations

from pathlib import Path

from tunerun import artifacts
from tunerun.artifacts import Artifact
from tunerun.base_model import read_base
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.merge.merge import merge_adapter
from tunerun.plan.steps import MergeStep


def run(step: MergeStep, out: Path) -> list[Artifact]:
    """Merges the run's adapter, or one made elsewhere, into the base model.

    Args:
        step: What to merge.
        out: The run directory.

    Returns:
        `merged/`.
    """
    base = read_base(out).folder
    merge_adapter(
        base,
        out / step.adapter,
        out / artifacts.MERGED,
        max_shard_size_bytes=step.max_shard_size_bytes,
        chat_template=_template(base, step.chat_template),
        quantisation=step.quantisation,
    )
    return [artifacts.describe(out, "model", artifacts.MERGED)]


def _template(base: Path, override: str | None) -> str | None:
    if override is None:
        return None
    template = load_template(base, load_tokenizer(base).named, override)
    assert template is not None, "a named template is found or refused"
    return template.text
