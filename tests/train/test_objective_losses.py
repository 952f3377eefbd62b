"""Each loss is what its formula says, computed the long way round: one padded row after the other, plain logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.tiny import tiny_qwen2
from tests.train.objective_runs import OBJECTIVES, Pair, make_objective_run, objective_job, objective_step, random_pairs
from tests.train.runs import FULL
from tunerun.base_model import BaseModel, write_teacher
from tunerun.errors import UserError
from tunerun.models import load, loss
from tunerun.models.attention import SEGMENTS
from tunerun.models.batch import lay_out
from tunerun.models.loss import segment_log_probs
from tunerun.train import gradients, material, reference
from tunerun.train.job import Job
from tunerun.train.objectives import kto, orpo
from tunerun.train.objectives.objective import add_sums, means, summed

PAIRS = random_pairs(4)


def _job(out: Path, name: str) -> Job:
    make_objective_run(out, OBJECTIVES[name], rows=4)
    job = objective_job(out, objective_step(OBJECTIVES[name], FULL, global_batch_size=4, micro_batch_size=3))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in job.parameters.values():
            value.add_(0.02 * torch.randn(value.shape, generator=generator))
    return job


def _log_probs(network: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    tokens = torch.tensor([prompt + answer])
    with torch.no_grad():
        logits = network(input_ids=tokens, segment_lengths=(tokens.shape[1],)).logits[0]
    return logits.log_softmax(1)[:-1].gather(1, tokens[0, 1:, None])[len(prompt) - 1 :, 0]


def _base(out: Path) -> Any:
    return load.load_model(out / "base", dtype=torch.float32, device="cpu", attention=SEGMENTS)


def _both(network: Any, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    return _log_probs(network, pair[0], pair[1]), _log_probs(network, pair[0], pair[2])


def _pair_loss(name: str, now: tuple[torch.Tensor, torch.Tensor], before: tuple[torch.Tensor, torch.Tensor]) -> float:
    chosen, rejected = (one.sum() - other.sum() for one, other in zip(now, before, strict=True))
    difference = 0.1 * (chosen - rejected)
    found = {
        "dpo": -F.logsigmoid(difference),
        "dpo-smoothed": -0.9 * F.logsigmoid(difference) - 0.1 * F.logsigmoid(-difference),
        "hinge": (1 - difference).clamp(min=0),
        "ipo": (chosen / len(now[0]) - rejected / len(now[1]) - 5.0) ** 2,
        "simpo": -F.logsigmoid(2.0 * (now[0].mean() - now[1].mean()) - 1.0),
    }
    return float(found[name])


@pytest.mark.parametrize("name", ["dpo", "dpo-smoothed", "hinge", "ipo", "simpo"])
def test_a_loss_on_pairs_is_its_formula(tmp_path: Path, name: str) -> None:
    job, base = _job(tmp_path, name), _base(tmp_path)
    wanted = sum(_pair_loss(name, _both(job.network, pair), _both(base, pair)) for pair in PAIRS) / len(PAIRS)
    found, sums = gradients.accumulate(job, gradients.global_batch(job, 0))
    assert float(sum(found)) == pytest.approx(wanted, rel=1e-5)
    measured = means(sums)
    assert measured["rewards/margins"] == pytest.approx(
        measured["rewards/chosen"] - measured["rewards/rejected"], abs=1e-5
    )


def test_orpo_is_imitation_and_odds(tmp_path: Path) -> None:
    job = _job(tmp_path, "orpo")
    both = [_both(job.network, pair) for pair in PAIRS]
    imitation = -torch.cat([chosen for chosen, _ in both]).mean()

    def log_odds(log_prob: torch.Tensor) -> torch.Tensor:
        return torch.log(log_prob.exp() / (1 - log_prob.exp()))

    odds = torch.stack([F.logsigmoid(log_odds(chosen.mean()) - log_odds(rejected.mean())) for chosen, rejected in both])
    found, sums = gradients.accumulate(job, gradients.global_batch(job, 0))
    assert float(sum(found)) == pytest.approx(float(imitation - 0.1 * odds.mean()), rel=1e-5)
    assert means(sums)["nll_loss"] == pytest.approx(float(imitation), rel=1e-5)


def test_orpo_keeps_its_gradient_where_an_answer_is_almost_certain() -> None:
    log_prob = torch.tensor([-1e-6, -0.5, -30.0], requires_grad=True)
    found = orpo._log_of_rest(log_prob)
    found.sum().backward()
    exact = torch.log1p(-torch.exp(log_prob.detach().double()))
    assert torch.allclose(found.detach().double(), exact, rtol=1e-5)
    assert log_prob.grad is not None and bool(log_prob.grad.isfinite().all())


def test_kto_compares_with_the_mismatched_rows_of_the_whole_batch(tmp_path: Path) -> None:
    job, base = _job(tmp_path, "kto"), _base(tmp_path)
    order = [int(row) for row in gradients.global_batch(job, 0).samples]
    ratios, mismatched = {}, []
    for place, row in enumerate(order):
        prompt, answer, _ = PAIRS[row]
        other = PAIRS[order[place - 1]][1]
        ratios[row] = float((_log_probs(job.network, prompt, answer) - _log_probs(base, prompt, answer)).sum())
        mismatched.append(float((_log_probs(job.network, prompt, other) - _log_probs(base, prompt, other)).sum()))
    kl = max(0.0, sum(mismatched) / 4)
    losses = []
    for row, ratio in ratios.items():
        weight, sign = (1.5, -1.0) if row % 3 == 1 else (1.0, 1.0)
        losses.append(weight * (1 - torch.sigmoid(torch.tensor(0.1 * sign * (ratio - kl)))))
    found, sums = gradients.accumulate(job, gradients.global_batch(job, 0))
    assert float(sum(found)) == pytest.approx(float(sum(losses)) / 4, rel=1e-5)
    assert means(sums)["kl"] == pytest.approx(kl, rel=1e-4, abs=1e-5)


def test_a_mismatched_row_never_has_its_own_answer() -> None:
    assert kto.partners([2, 0, 3, 1, 4], 2).tolist() == [2, 3, 0, 1, 1]
    assert kto.partners([1, 0], 1).tolist() == [1, 0]


@pytest.mark.parametrize("name", ["distill", "distill-reverse"])
def test_distillation_mixes_cross_entropy_and_divergence(tmp_path: Path, name: str) -> None:
    job = _job(tmp_path, name)
    batch, heat = gradients.global_batch(job, 0), OBJECTIVES[name].temperature
    hard, soft, count = torch.zeros(()), torch.zeros(()), 0
    for part in batch.parts:
        laid = part.laid
        inputs = {"input_ids": laid.input_ids, "position_ids": laid.position_ids}
        with torch.no_grad():
            student, teacher = (
                network(**inputs, segment_lengths=laid.segment_lengths).logits[0, laid.predicting]
                for network in (job.network, job.setting.teacher)
            )
        one, other = ((logits / heat).softmax(1) for logits in (student, teacher))
        if name == "distill":
            one, other = other, one
        soft = soft + heat**2 * (one * (one.log() - other.log())).sum()
        hard = hard + F.cross_entropy(student, laid.targets, reduction="sum")
        count += len(laid.targets)
    wanted = 0.5 * float(hard + soft) / count
    assert float(sum(gradients.accumulate(job, batch)[0])) == pytest.approx(wanted, rel=1e-5)
    assert all(value.grad is None for value in job.setting.teacher.parameters())


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    out = make_objective_run(tmp_path, OBJECTIVES["distill"])
    folder = tiny_qwen2(tmp_path / "other")
    text = (folder / "tokenizer.json").read_text().replace("<|im_end|>", "<|other|>")
    (folder / "tokenizer.json").write_text(text)
    write_teacher(out, BaseModel(folder=folder, path="org/other", revision=None, sha256="6"))
    with pytest.raises(UserError, match=r"objective.teacher: org/other has another tokenizer than org/tiny"):
        objective_job(out, objective_step(OBJECTIVES["distill"], FULL))


@pytest.mark.parametrize("logits_bytes", [64 << 20, 4 * 320 * 5])
def test_log_probabilities_and_their_gradients_are_the_same_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logits_bytes: int
) -> None:
    monkeypatch.setitem(loss.LOGITS_BYTES, "cpu", logits_bytes)
    job = _job(tmp_path, "simpo")
    store = material.open_examples(job.step, tmp_path / "data").store
    rows = [store.chosen.row(row) for row in range(4)]
    found = segment_log_probs(job.network, lay_out(rows, "cpu"))
    wanted = torch.stack([_log_probs(job.network, prompt, chosen).sum() for prompt, chosen, _ in PAIRS])
    assert torch.allclose(found.detach(), wanted, rtol=1e-5)
    found.pow(2).sum().backward()
    gradient = torch.cat([value.grad.flatten() for value in job.parameters.values()])
    job.network.zero_grad()
    monkeypatch.setitem(loss.LOGITS_BYTES, "cpu", 64 << 20)
    segment_log_probs(job.network, lay_out(rows, "cpu")).pow(2).sum().backward()
    again = torch.cat([value.grad.flatten() for value in job.parameters.values()])
    assert float((gradient - again).norm() / again.norm()) < 1e-6


def test_a_reference_belongs_to_data_and_model_and_not_to_how_training_goes_on() -> None:
    identity = {"data (content)": "a", "model (content)": "b", "train.learning_rate": 0.1, "placement.processes": 1}
    key = reference.key_of(identity)
    assert reference.key_of({**identity, "train.learning_rate": 0.2, "placement.processes": 4}) == key
    assert reference.key_of({**identity, "data (content)": "c"}) != key
    assert reference.key_of({**identity, "model (content)": "c"}) != key


def test_reference_numbers_of_something_else_or_damaged_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "train.safetensors"
    assert reference.read(path, "a") is None
    reference.write(path, "a", {"chosen": torch.ones(3)})
    assert reference.read(path, "b") is None
    found = reference.read(path, "a")
    assert found is not None and found["chosen"].tolist() == [1.0, 1.0, 1.0]
    path.write_bytes(path.read_bytes()[:20])
    assert reference.read(path, "a") is None


def test_metrics_are_means_over_what_they_count() -> None:
    one = summed(rewards__chosen=torch.tensor([1.0, 2.0]), none=torch.tensor([]))
    both = add_sums(one, summed(rewards__chosen=torch.tensor([6.0])))
    assert means(both) == {"rewards/chosen": 3.0}
