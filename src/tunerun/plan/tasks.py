"""Finds names of evaluation tasks that the LM Evaluation Harness does not have, without importing it.

Its own index takes many seconds and is asked by the eval stage, hours later perhaps. Every name it knows is written out
in one of its task files (a test holds it to that), so a name that is in none of them is a mistake.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from tunerun.config.schema import EvalConfig
from tunerun.config.typed import nearest
from tunerun.errors import Problem

PACKAGE = "lm_eval"
TASK_SUFFIXES = (".yaml", ".yml")
"""Endings of files that define a task of one's own."""

_NO_TASKS = (".py", ".pyc", ".md")
_TOKEN = re.compile(rb"[^\s\"',\[\]{}]+")
_NAME = re.compile(rb"^[ \t-]*[\"']?(?:task|group|tag)[\"']?[ \t]*:[ \t]*[\"']?([^\s\"'#\[\],]+)", re.MULTILINE)


def problems(evaluation: EvalConfig) -> list[Problem]:
    """Finds tasks that do not exist; nothing is said of names while the harness is not installed.

    Args:
        evaluation: The section `eval`.
    """
    found = []
    folder = evaluation.lm_eval_tasks_dir
    if folder is not None and not Path(folder).is_dir():
        found.append(Problem(where="eval.lm_eval_tasks_dir", what=f"there is no folder {folder}."))
    files = [name for name in evaluation.lm_eval if name.endswith(TASK_SUFFIXES)]
    found += [
        Problem(where="eval.lm_eval", what=f"there is no file {name}.") for name in files if not Path(name).is_file()
    ]
    names = [name for name in evaluation.lm_eval if name not in files]
    spec = importlib.util.find_spec(PACKAGE)
    if not names or spec is None or spec.origin is None:
        return found
    roots = [Path(spec.origin).parent / "tasks", *([] if folder is None else [Path(folder)])]
    texts = [text for root in roots for text in _texts(root)]
    tokens = {token for text in texts for token in _TOKEN.findall(text)}
    missing = [name for name in names if name.encode() not in tokens]
    known = sorted({match.decode("utf-8", "replace") for text in texts for match in _NAME.findall(text)})
    return found + [
        Problem(where="eval.lm_eval", what=f"there is no task {name}.", fix=_near(name, known)) for name in missing
    ]


def _near(name: str, known: list[str]) -> str:
    fix = nearest(name, known)
    # There are more than ten thousand.
    return fix if fix.startswith("Did") else "lm_eval ls tasks lists them all."


def _texts(root: Path) -> Iterator[bytes]:
    for file in root.rglob("*"):
        if not file.name.endswith(_NO_TASKS) and file.is_file():
            yield file.read_bytes()
