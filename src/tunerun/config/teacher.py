"""Rules between the keys of the section `answer`."""

from __future__ import annotations

from tunerun.config.schema import AnswerConfig, RunConfig
from tunerun.errors import Problem
from tunerun.network import address

PROMPT_PARTS = ("system", "user", "text")
_CALL = "/chat/completions"
_EXAMPLE = "Write it like https://api.example.com/v1 or http://127.0.0.1:8000/v1."
# Fields of a request that the stage decides itself.
_OWN_FIELDS = ("model", "messages", "stream", "n", "tools", "tool_choice")


def check(config: RunConfig) -> list[Problem]:
    """Finds what is wrong with the section `answer`, when the stage is to run."""
    if "answer" not in config.stages:
        return []
    answer = config.answer
    problems = [*_endpoint(answer), *_request(answer)]
    if not answer.prompts:
        fix = "Set answer.prompts to a file, a folder or a hub id."
        problems.append(Problem(where="answer.prompts", what="there is nothing to answer.", fix=fix))
    for part in answer.columns:
        if part not in PROMPT_PARTS:
            fix = f"Parts of a prompt: {', '.join(PROMPT_PARTS)}."
            problems.append(Problem(where=f"answer.columns.{part}", what="is not part of a prompt.", fix=fix))
    if "data" in config.stages and config.objective.kind not in ("sft", "distill"):
        what = f"objective {config.objective.kind} does not learn from conversations, which answers are."
        problems.append(Problem(where="objective.kind", what=what, fix="Choose objective=sft."))
    return problems


def _endpoint(answer: AnswerConfig) -> list[Problem]:
    problems = []
    if not answer.model:
        fix = "Set answer.model to the name that the endpoint has for it."
        problems.append(Problem(where="answer.model", what="no teacher is named.", fix=fix))
    if not answer.url:
        fix = f"Set answer.url. {_EXAMPLE}"
        return [*problems, Problem(where="answer.url", what="no endpoint is named.", fix=fix)]
    try:
        found = address(answer.url)
    except ValueError as error:
        fix = _EXAMPLE if "password" not in str(error) else "Name a variable that holds the key by answer.api_key_env."
        return [*problems, Problem(where="answer.url", what=str(error), fix=fix)]
    if answer.url.rstrip("/").endswith(_CALL):
        fix = f"Leave {_CALL} out: it is added."
        problems.append(Problem(where="answer.url", what="names a call, not the endpoint.", fix=fix))
    if answer.api_key_env and not found.encrypted and not found.is_here:
        what = f"the key would go to {found.host} without encryption, for anyone on the way to read."
        fix = "Write https://, or reach it through a tunnel: ssh -L 8000:localhost:8000 HOST, http://127.0.0.1:8000/v1."
        problems.append(Problem(where="answer.url", what=what, fix=fix))
    return problems


def _request(answer: AnswerConfig) -> list[Problem]:
    problems = []
    if answer.samples > 1 and answer.temperature == 0:
        what = f"{answer.samples} answers at temperature 0 are all the same."
        problems.append(Problem(where="answer.samples", what=what, fix="Set answer.temperature=1."))
    if "seed" in answer.extra and answer.extra["seed"] is not None:
        what = "each prompt is sent with a seed of its own."
        fix = "Set the run's seed, or send none: answer.extra.seed=null."
        problems.append(Problem(where="answer.extra.seed", what=what, fix=fix))
    for name in answer.extra:
        if name in _OWN_FIELDS:
            problems.append(Problem(where=f"answer.extra.{name}", what="is decided by the stage.", fix="Remove it."))
    return problems
