from __future__ import annotations

import pytest

from tunerun.config.schema import EvalConfig
from tunerun.plan import tasks

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install -c constraints.txt lm-eval")


def problems(**settings) -> list[str]:
    return [str(problem) for problem in tasks.problems(EvalConfig(**settings))]


def test_tasks_groups_tags_and_files_are_known(tmp_path):
    (tmp_path / "mine.yaml").write_text("task: colours\n")
    names = ("hellaswag", "gsm8k", "mmlu", "acp_bench", str(tmp_path / "mine.yaml"), "colours")
    assert problems(lm_eval=names, lm_eval_tasks_dir=str(tmp_path)) == []


def test_a_mistyped_name_is_told_with_its_nearest():
    (problem,) = problems(lm_eval=("hellaswagg", "gsm8k"))
    assert problem.startswith("eval.lm_eval: there is no task hellaswagg. Did you mean")
    assert "hellaswag" in problem
    assert problems(lm_eval=("qqqqzzzz",)) == [
        "eval.lm_eval: there is no task qqqqzzzz. lm_eval ls tasks lists them all."
    ]


def test_files_and_folders_that_are_missing_are_told():
    assert problems(lm_eval=("gone.yaml",), lm_eval_tasks_dir="./gone") == [
        "eval.lm_eval_tasks_dir: there is no folder ./gone.",
        "eval.lm_eval: there is no file gone.yaml.",
    ]


@pytest.mark.slow
def test_no_name_that_the_harness_knows_is_refused():
    from lm_eval.tasks import TaskManager

    assert problems(lm_eval=tuple(TaskManager().all_tasks)) == []
