"""The step that lets a teacher answer prompts."""

from __future__ import annotations

from tunerun.config.schema import RunConfig
from tunerun.network import address
from tunerun.plan.steps import AnswerStep


def step(config: RunConfig) -> AnswerStep:
    """Returns the step of a config that has the stage."""
    return AnswerStep(
        answer=config.answer,
        vars=config.data.vars,
        on_bad_rows=config.data.on_bad_rows,
        hub=config.data.hub,
        seed=config.seed,
        cache_dir=config.env.cache_dir,
    )


def warnings(config: RunConfig) -> list[str]:
    """Says what may go wrong on the way to the teacher."""
    if "answer" not in config.stages or config.answer.url is None:
        return []
    place = address(config.answer.url)
    if place.encrypted or place.is_here:
        return []
    return [f"prompts and answers travel to and from {place.host} without encryption (answer.url)"]
