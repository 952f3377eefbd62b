"""A reward model is a classifier that transformers loads and that prefers what it was taught to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.train.objective_runs import (
    OBJECTIVES,
    make_objective_run,
    objective_job,
    objective_step,
    random_pairs,
)
from tests.train.runs import FULL, LORA, Killed, kill_before
from tunerun import artifacts
from tunerun.config.schema import MethodConfig
from tunerun.models.batch import lay_out
from tunerun.train import gradients, material
from tunerun.train.objectives import reward
from tunerun.train.stage import run

METHODS = {"full": FULL, "lora": replace(LORA, dropout=0.0)}
STEP = {"learning_rate": 5e-3, "epochs": 10.0}


@pytest.mark.parametrize("name", METHODS)
def test_transformers_loads_the_model_and_scores_padded_rows_as_we_do(tmp_path: Path, name: str) -> None:
    out = make_objective_run(tmp_path, OBJECTIVES["reward"])
    run(objective_step(OBJECTIVES["reward"], METHODS[name], **STEP), out)
    model = AutoModelForSequenceClassification.from_pretrained(out / artifacts.MERGED, dtype=torch.float32).eval()
    pad, scores = model.config.pad_token_id, []
    for side in (1, 2):
        rows = [pair[0] + pair[side] for pair in random_pairs(10)]
        width = max(len(row) for row in rows)
        tokens = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        with torch.no_grad():
            scores.append(model(input_ids=tokens, attention_mask=mask).logits[:, 0])
    assert float((scores[0] > scores[1]).float().mean()) >= 0.9
    ours = AutoModelForSequenceClassification.from_pretrained(
        out / artifacts.MERGED, dtype=torch.float32, attn_implementation="tunerun_segments"
    ).eval()
    store = material.open_examples(objective_step(OBJECTIVES["reward"], FULL), out / "data").store
    with torch.no_grad():
        found = reward.scores(ours, lay_out([store.chosen.row(row) for row in range(10)], "cpu"))
    assert torch.allclose(found, scores[0], atol=1e-5)


def test_the_loss_is_that_of_bradley_and_terry(tmp_path: Path) -> None:
    out = make_objective_run(tmp_path, OBJECTIVES["reward"], rows=4)
    job = objective_job(out, objective_step(OBJECTIVES["reward"], FULL))
    batch = gradients.global_batch(job, 0)
    with torch.no_grad():
        scores = torch.stack([reward.scores(job.network, part.laid).view(2, -1) for part in batch.parts], 1)
        chosen, rejected = scores.flatten(1)
        wanted = torch.log(1 + torch.exp(rejected - chosen)).mean()
    assert float(sum(gradients.accumulate(job, batch)[0])) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("method", [FULL, MethodConfig(rank=4, alpha=8.0, dropout=0.1)], ids=["full", "lora"])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, method: MethodConfig) -> None:
    step = objective_step(OBJECTIVES["reward"], method, checkpoint_steps=2)
    straight, stopped = (make_objective_run(tmp_path / name, OBJECTIVES["reward"]) for name in ("a", "b"))
    wanted = run(step, straight)
    with kill_before(3), pytest.raises(Killed):
        run(step, stopped)
    assert run(step, stopped)[:-1] == wanted[:-1]
