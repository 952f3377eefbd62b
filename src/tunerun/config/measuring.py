"""Rules for what is measured while training and after it."""

from __future__ import annotations

from tunerun.config.schema import RunConfig
from tunerun.errors import Problem


def selection(config: RunConfig) -> list[Problem]:
    """Finds what training is to choose by, and does not have."""
    train, problems = config.train, []
    chooses = train.keep_best or train.early_stopping_evals is not None
    if train.eval_steps is None:
        needed = {
            "keep_best": train.keep_best,
            "early_stopping_evals": train.early_stopping_evals is not None,
            "generate_rows": train.generate_rows > 0,
        }
        problems += [
            Problem(where=f"train.{key}", what="no held-out rows are measured.", fix="Set train.eval_steps.")
            for key, used in needed.items()
            if used
        ]
    if train.best_metric != "loss" and not train.generate_rows:
        what = f"{train.best_metric} is measured on generated answers."
        problems.append(Problem(where="train.best_metric", what=what, fix="Set train.generate_rows=50, for instance."))
    if train.best_metric != "loss" and not chooses:
        fix = "Set train.keep_best=true or train.early_stopping_evals, or leave it at loss."
        problems.append(Problem(where="train.best_metric", what="nothing goes by it.", fix=fix))
    if train.on_nonfinite == "rollback" and train.checkpoint_steps is None:
        what = "rollback goes back to a checkpoint, and none are written."
        problems.append(Problem(where="train.on_nonfinite", what=what, fix="Set train.checkpoint_steps."))
    return problems


def generation(config: RunConfig) -> list[Problem]:
    """Finds answers that are to be compared where rows have none."""
    if config.objective.kind in ("sft", "distill"):
        return []
    what = f"rows of objective {config.objective.kind} have no single answer to compare with."
    rows = {"eval.generate_rows": config.eval.generate_rows, "train.generate_rows": config.train.generate_rows}
    return [Problem(where=key, what=what, fix=f"Set {key}=0.") for key, count in rows.items() if count]
