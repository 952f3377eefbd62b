"""An adapter that two real processes trained under an engine that shares out parameters: merged, and as GGUF."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.merge.test_merge import reference, same
from tests.tiny import tiny_qwen2
from tests.train.engines.group import ENGINE, Training, placed, train
from tests.train.runs import LORA, losses, make_run, train_step
from tunerun import artifacts
from tunerun.config.schema import GgufConfig
from tunerun.export import stage as export_stage
from tunerun.merge import stage as merge_stage
from tunerun.plan.steps import ExportStep, MergeStep
from tunerun.strategies import SHARDED_STRATEGIES

STEPS = 4


def make_bf16_run(out: Path) -> Path:
    base = tiny_qwen2(out / "base", hidden_size=256, num_attention_heads=4)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    return make_run(out)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SHARDED_STRATEGIES)
def test_what_two_ranks_trained_is_merged_to_the_bits_of_peft_and_exported(strategy: str, tmp_path: Path) -> None:
    differing_tensors = pytest.importorskip("tests.export.compare", exc_type=ImportError).differing_tensors
    out = make_bf16_run(tmp_path / "run")
    step = placed(train_step(replace(LORA, rank=8), micro_batch_size=2, max_steps=STEPS), strategy, 2)
    train([Training(step=step, out=out)], tmp_path / "group")
    assert ("deepspeed" if strategy == "zero3" else "FSDPModule") in (out / ENGINE).read_text()
    assert len(losses(out)) == STEPS

    merge_stage.run(MergeStep(adapter="adapter", chat_template=None, max_shard_size_bytes=300_000), out)
    assert len(list((out / artifacts.MERGED).glob("*.safetensors"))) > 1
    reference(out / "base", out / artifacts.ADAPTER, tmp_path / "peft", torch.bfloat16)
    assert same(out / artifacts.MERGED, tmp_path / "peft")
    assert not same(out / artifacts.MERGED, out / "base"), "nothing was learned"

    pytest.importorskip("llama_cpp")
    gguf = ExportStep(name="ranks", merged=True, gguf=GgufConfig(types=("bf16", "q4_k_m")), chat_template=None)
    export_stage.run(gguf, out)
    from_merged = (out / artifacts.EXPORT).rename(tmp_path / "from-merged")
    export_stage.run(replace(gguf, merged=False, adapter="adapter"), out)
    for kind in gguf.gguf.types:
        one, other = (folder / f"ranks-{kind}.gguf" for folder in (from_merged, out / artifacts.EXPORT))
        assert differing_tensors(one, other) == []
