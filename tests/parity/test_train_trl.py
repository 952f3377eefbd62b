"""Per-step losses are those of TRL 1.16 and of the HF Trainer: same tokens, same start, float32.

Their trainers get token ids that are ready, so that only the training is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.objective_runs import (
    OBJECTIVES,
    make_objective_run,
    objective_job,
    objective_step,
    random_pairs,
    write_pairs,
)
from tests.train.runs import FULL
from tunerun import artifacts
from tunerun.config.schema import MethodConfig, ObjectiveConfig
from tunerun.formats.pairs import PairStore
from tunerun.formats.tokens import TokenStore
from tunerun.train import batches, loop
from tunerun.train.job import Job

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.slow

STEPS, BATCH, BOUND = 50, 4, 1e-5
METHODS = {"full": FULL, "lora": MethodConfig(rank=4, alpha=8.0)}
# What TRL's names of the same loss are.
DPO_LOSSES = {"dpo": "sigmoid", "hinge": "hinge", "ipo": "ipo"}


def _job(out: Path, objective: ObjectiveConfig, method: str) -> Job:
    values: dict[str, Any] = {"schedule": "constant", "warmup_fraction": 0.0, "learning_rate": 1e-3, "epochs": 1.0}
    step = objective_step(objective, METHODS[method], micro_batch_size=3, global_batch_size=BATCH, **values)
    return objective_job(out, step)


def _ours(job: Job) -> list[float]:
    job.network.train()
    return [loop.optimiser_step(job, index).loss for index in range(STEPS)]


def _order(job: Job) -> list[int]:
    rows, seed = len(job.examples), job.step.seed
    return [
        row
        for index in range(STEPS)
        for row in batches.rows_of_step(index, rows=rows, global_batch_size=BATCH, seed=seed)
    ]


def _save_start(job: Job, out: Path) -> None:
    """Writes what `job` trains, as it is before the first step, to start/."""
    job.save_weights(out / "start", job.engine.weights(trainable=job.trainable_only))


def _model(out: Path, job: Job) -> Any:
    """The model that `job` starts from, as transformers and peft load it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
    if job.step.method.kind == "full":
        return model
    _save_start(job, out)
    return PeftModel.from_pretrained(model, str(out / "start" / artifacts.ADAPTER), is_trainable=True)


def _settings(out: Path, **values: Any) -> dict[str, Any]:
    return {
        "output_dir": str(out / "peer"),
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        **values,
    }


def _losses(trainer: Any) -> list[float]:
    """Trains and returns the loss of each micro-batch, summed by optimiser step."""
    found: list[float] = []
    original: Callable[..., torch.Tensor] = trainer.training_step

    def step(*arguments: Any, **values: Any) -> torch.Tensor:
        loss = original(*arguments, **values)
        found.append(float(loss))
        return loss

    trainer.training_step = step
    trainer.train()
    size = trainer.args.gradient_accumulation_steps
    return [sum(found[start : start + size]) for start in range(0, len(found), size)]


def _tokenizer(out: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(out / "base")


def _compare(ours: list[float], theirs: list[float]) -> None:
    assert len(ours) == len(theirs) == STEPS
    # Relative to losses above 1: those of ipo are tens, in float32.
    worst = max(abs(one - other) / max(1.0, other) for one, other in zip(ours, theirs, strict=True))
    assert max(ours) - min(ours) > 100 * BOUND, "the losses say nothing"
    assert worst < BOUND


def _pair_rows(job: Job) -> list[dict[str, list[int]]]:
    store = job.examples.store
    assert isinstance(store, PairStore)
    rows = []
    for row in _order(job):
        (chosen, trained, _), (rejected, _, _) = store.chosen.row(row), store.rejected.row(row)
        prompt = int(trained.argmax())
        rows.append(
            {
                "prompt_ids": chosen[:prompt].tolist(),
                "chosen_ids": chosen[prompt:].tolist(),
                "rejected_ids": rejected[prompt:].tolist(),
            }
        )
    return rows


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_sft_trainer(tmp_path: Path, method: str, accumulation: int) -> None:
    job = _job(make_objective_run(tmp_path, OBJECTIVES["sft"], rows=40), OBJECTIVES["sft"], method)
    store = job.examples.store
    assert isinstance(store, TokenStore)
    rows = [store.row(row) for row in _order(job)]
    data = [{"input_ids": tokens.tolist(), "completion_mask": trained.tolist()} for tokens, trained, _ in rows]
    arguments = trl.SFTConfig(
        **_settings(
            tmp_path,
            per_device_train_batch_size=BATCH // accumulation,
            gradient_accumulation_steps=accumulation,
            completion_only_loss=True,
        )
    )
    trainer = trl.SFTTrainer(
        model=_model(tmp_path, job),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=_tokenizer(tmp_path),
    )
    _compare(_ours(job), _losses(trainer))


@pytest.mark.parametrize("method", METHODS)
def test_hf_trainer(tmp_path: Path, method: str) -> None:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    job = _job(make_objective_run(tmp_path, OBJECTIVES["sft"], rows=40), OBJECTIVES["sft"], method)
    store = job.examples.store
    assert isinstance(store, TokenStore)
    data = []
    for row in _order(job):
        tokens, trained, _ = store.row(row)
        labels = [int(token) if flag else -100 for token, flag in zip(tokens, trained, strict=True)]
        data.append({"input_ids": tokens.tolist(), "attention_mask": [1] * len(tokens), "labels": labels})
    trainer = Trainer(
        model=_model(tmp_path, job),
        args=TrainingArguments(**_settings(tmp_path)),
        train_dataset=datasets.Dataset.from_list(data),
        data_collator=DataCollatorForSeq2Seq(_tokenizer(tmp_path)),
    )
    _compare(_ours(job), _losses(trainer))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DPO_LOSSES)
def test_dpo_trainer(tmp_path: Path, name: str, method: str) -> None:
    class Ready(trl.DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    job = _job(make_objective_run(tmp_path, OBJECTIVES[name], rows=40), OBJECTIVES[name], method)
    trainer = Ready(
        model=_model(tmp_path, job),
        args=trl.DPOConfig(**_settings(tmp_path, loss_type=DPO_LOSSES[name], beta=0.1)),
        train_dataset=datasets.Dataset.from_list(_pair_rows(job)),
        processing_class=_tokenizer(tmp_path),
    )
    _compare(_ours(job), _losses(trainer))


@pytest.mark.parametrize("method", METHODS)
def test_kto_trainer(tmp_path: Path, method: str) -> None:
    class Ready(trl.KTOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            def rotate(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
                answers = rows["completion_ids"]
                return {**rows, "KL_completion_ids": [answers[-1], *answers[:-1]]}

            return dataset.map(rotate, batched=True, batch_size=BATCH)

    # One epoch: TRL's mismatched answers come from the batches as they lie in its data.
    out = make_objective_run(tmp_path, OBJECTIVES["kto"], rows=STEPS * BATCH)
    job = _job(out, OBJECTIVES["kto"], method)
    store = job.examples.store
    assert isinstance(store, TokenStore) and store.labels is not None
    data = []
    for row in _order(job):
        tokens, trained, _ = store.row(row)
        start = int(trained.argmax())
        data.append(
            {
                "prompt_ids": tokens[:start].tolist(),
                "completion_ids": tokens[start:].tolist(),
                "label": bool(store.labels[row]),
            }
        )
    weights = {"desirable_weight": 1.0, "undesirable_weight": 1.5}
    trainer = Ready(
        model=_model(tmp_path, job),
        args=trl.KTOConfig(**_settings(tmp_path, beta=0.1, **weights)),
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=_tokenizer(tmp_path),
    )
    _compare(_ours(job), _losses(trainer))


@pytest.mark.parametrize("method", METHODS)
def test_reward_trainer(tmp_path: Path, method: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    class Ready(trl.RewardTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    job = _job(make_objective_run(tmp_path, OBJECTIVES["reward"], rows=40), OBJECTIVES["reward"], method)
    _save_start(job, tmp_path)
    folder = tmp_path / "start" / "model" if method == "full" else tmp_path / "base"
    pad = job.network.config.pad_token_id
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, pad_token_id=pad
    )
    if method == "lora":
        model = PeftModel.from_pretrained(model, str(tmp_path / "start" / artifacts.ADAPTER), is_trainable=True)
    data = [
        {f"{side}_ids": row["prompt_ids"] + row[f"{side}_ids"] for side in ("chosen", "rejected")}
        for row in _pair_rows(job)
    ]
    trainer = Ready(
        model=model,
        args=trl.RewardConfig(**_settings(tmp_path)),
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=_tokenizer(tmp_path),
    )
    _compare(_ours(job), _losses(trainer))


def _as_text(rows: list[dict[str, list[int]]]) -> Any:
    """ORPO's and CPO's trainers want text columns; what they make of them is replaced."""
    return datasets.Dataset.from_list([{"prompt": "", "chosen": "", "rejected": "", **row} for row in rows])


def _tokenized(feature: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"prompt_input_ids": feature["prompt_ids"]}
    found["prompt_attention_mask"] = [1] * len(feature["prompt_ids"])
    for side in ("chosen", "rejected"):
        tokens = feature["prompt_ids"] + feature[f"{side}_ids"]
        found[f"{side}_input_ids"], found[f"{side}_attention_mask"] = tokens, [1] * len(tokens)
        found[f"{side}_labels"] = [-100] * len(feature["prompt_ids"]) + feature[f"{side}_ids"]
    return found


@pytest.mark.parametrize("method", METHODS)
def test_orpo_trainer(tmp_path: Path, method: str) -> None:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    class Ready(ORPOTrainer):  # type: ignore[misc]
        def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, Any]:
            return _tokenized(feature)

    out = make_objective_run(tmp_path, OBJECTIVES["orpo"], rows=40)
    # TRL trains on the prompts too: with prompts of one token, which nothing predicts, both learn the answers alone.
    write_pairs(out / artifacts.DATA, random_pairs(40, prompt=1))
    job = _job(out, OBJECTIVES["orpo"], method)
    trainer = Ready(
        model=_model(tmp_path, job),
        args=ORPOConfig(**_settings(tmp_path, beta=0.1, max_length=64)),
        train_dataset=_as_text(_pair_rows(job)),
        processing_class=_tokenizer(tmp_path),
    )
    _compare(_ours(job), _losses(trainer))


@pytest.mark.parametrize("method", METHODS)
def test_cpo_trainer_with_simpo(tmp_path: Path, method: str) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    class Ready(CPOTrainer):  # type: ignore[misc]
        def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, Any]:
            return _tokenized(feature)

    objective = replace(OBJECTIVES["simpo"], gamma=0.5)
    job = _job(make_objective_run(tmp_path, objective, rows=40), objective, method)
    trainer = Ready(
        model=_model(tmp_path, job),
        args=CPOConfig(
            **_settings(tmp_path, loss_type="simpo", beta=2.0, simpo_gamma=0.5, cpo_alpha=0.0, max_length=64)
        ),
        train_dataset=_as_text(_pair_rows(job)),
        processing_class=_tokenizer(tmp_path),
    )
    _compare(_ours(job), _losses(trainer))
