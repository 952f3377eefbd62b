"""Every method trains, resumes to the same bits, and writes what others can load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.tiny import random_samples, write_store
from tests.train.runs import Killed, kill_before, losses, make_run, train_step
from tunerun import artifacts
from tunerun.config.schema import MethodConfig, ModelConfig
from tunerun.errors import UserError
from tunerun.merge.merge import merge_adapter
from tunerun.models import adapters
from tunerun.plan.steps import TrainStep, quantisation_of
from tunerun.train import loop
from tunerun.train.job import Job
from tunerun.train.stage import run

METHODS = {
    "freeze": MethodConfig(kind="freeze", layers=1, patterns=("model.norm.*",)),
    "rslora": MethodConfig(kind="rslora", rank=4, alpha=8.0, dropout=0.1),
    "dora": MethodConfig(kind="dora", rank=4, alpha=8.0, dropout=0.1),
    "pissa": MethodConfig(kind="pissa", rank=4, alpha=4.0, rank_pattern={"q_proj": 2}, modules_to_save=("norm",)),
    "pissa-exact": MethodConfig(kind="pissa", rank=4, alpha=4.0, pissa_iterations=0),
    "lora_plus": MethodConfig(kind="lora_plus", rank=4, alpha=8.0),
    "qlora": MethodConfig(kind="qlora", rank=4, alpha=8.0, dropout=0.1),
    "qlora-int8": MethodConfig(kind="qlora", rank=4, alpha=8.0, bits=8, target_modules=("q_proj",)),
    "patterns": MethodConfig(rank=4, alpha=8.0, rank_pattern={"down_proj": 6}, alpha_pattern={"layers.0.*v_proj": 3.0}),
    "saved": MethodConfig(rank=4, alpha=8.0, target_modules=("v_proj",), modules_to_save=("embed_tokens",)),
}
FEWER = {"vocab_size": 310, "pad_token_id": 0, "eos_token_id": 1}
"""Of a base whose weights lack ten of the tokenizer's tokens."""
PROMPT = torch.arange(5, 45)[None]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_and_resumes_to_the_same_bits(tmp_path: Path, name: str, precision: str) -> None:
    step = train_step(METHODS[name], precision=precision, checkpoint_steps=2, learning_rate=5e-3)
    straight, stopped = (make_run(tmp_path / folder) for folder in ("straight", "stopped"))
    wanted = run(step, straight)[0]
    with kill_before(3), pytest.raises(Killed):
        run(step, stopped)
    assert run(step, stopped)[0] == wanted
    assert losses(stopped) == losses(straight)
    assert losses(straight)[-1][1] < losses(straight)[0][1]


def _base(out: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(out / "base", dtype=dtype)


@torch.no_grad()
def _logits(model: Any) -> torch.Tensor:
    return model.eval()(PROMPT).logits


def _trained(step: TrainStep, out: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Trains; returns the logits of the network in memory at the end of training."""
    seen: list[Job] = []
    original = loop.run
    with monkeypatch.context() as patch:
        patch.setattr(loop, "run", lambda job, *rest: (seen.append(job), original(job, *rest))[1])
        run(step, out)
    network = seen[0].network
    network.set_attn_implementation("sdpa")
    return _logits(network)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("freeze", "qlora", "qlora-int8")])
def test_plain_peft_loads_the_adapter_on_the_untouched_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = make_run(tmp_path)
    wanted = _trained(train_step(METHODS[name], learning_rate=5e-3), out, monkeypatch)
    found = _logits(PeftModel.from_pretrained(_base(out), out / artifacts.ADAPTER))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert (wanted - _logits(_base(out))).abs().max() > 0.1


@pytest.mark.parametrize("bits", [4, 8])
def test_merging_a_qlora_adapter_into_the_dequantised_base_gives_the_trained_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: Literal[4, 8]
) -> None:
    """The untouched base gives another network, further away by the quantisation's error."""
    out, method = make_run(tmp_path), MethodConfig(kind="qlora", rank=4, alpha=8.0, bits=bits)
    wanted = _trained(train_step(method, learning_rate=5e-3), out, monkeypatch)
    away = {}
    for name, quantisation in (("dequantised", quantisation_of(method)), ("full_precision", None)):
        merge_adapter(
            out / "base", out / artifacts.ADAPTER, out / name, max_shard_size_bytes=1 << 30, quantisation=quantisation
        )
        made = artifacts.read_json(out / name / "merge.json")
        assert made["merge_base"] == name
        logits = _logits(AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32))
        away[name] = float((logits - wanted).abs().mean() / wanted.std())
    # LLM.int8() quantises activations too, which no weights can follow.
    assert away["dequantised"] < (1e-3 if bits == 4 else 2e-2)
    assert away["dequantised"] < away["full_precision"] * (0.1 if bits == 4 else 1.0)
    peft = PeftModel.from_pretrained(_base(out), out / artifacts.ADAPTER)
    assert isinstance(peft, PeftModel)


def test_the_last_layers_and_what_is_named_move_and_nothing_else(tmp_path: Path) -> None:
    out = make_run(tmp_path)
    run(train_step(METHODS["freeze"], precision="bf16"), out)
    before, after = (load_file(out / name / "model.safetensors") for name in ("base", artifacts.MERGED))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("model.layers.1.")} | {"model.norm.weight"}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (MethodConfig(kind="freeze", layers=3), r"method.layers: 3 layers are more than the model's 2"),
        (MethodConfig(kind="freeze", patterns=("nom*",)), r"method.patterns: no weight is named like `nom\*`"),
    ],
)
def test_what_cannot_be_frozen_is_named(tmp_path: Path, method: MethodConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(train_step(method), make_run(tmp_path))


def test_lora_plus_moves_b_faster(tmp_path: Path) -> None:
    """One step of AdamW moves each weight by the learning rate."""
    out, slow = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    options: dict[str, Any] = {"max_steps": 1, "learning_rate": 1e-4, "warmup_fraction": 0.0, "max_grad_norm": None}
    run(train_step(MethodConfig(kind="lora_plus", learning_rate_ratio=8.0), **options), out)
    run(train_step(MethodConfig(kind="lora"), **options), slow)
    fast, plain = (load_file(folder / artifacts.ADAPTER / "adapter_model.safetensors") for folder in (out, slow))
    for name, value in fast.items():
        if "lora_B" in name:
            torch.testing.assert_close(value, 8 * plain[name])
        else:
            assert torch.equal(value, plain[name])


@pytest.mark.parametrize("name", ["dora", "rslora", "pissa", "lora_plus", "qlora", "saved"])
def test_an_adapter_of_any_kind_is_gone_on_with(tmp_path: Path, name: str) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    run(train_step(METHODS[name], learning_rate=5e-3), first)
    model = ModelConfig(path="org/tiny", adapter=str(first / artifacts.ADAPTER))
    # What PiSSA writes is a LoRA.
    method = replace(METHODS[name], kind="lora") if name == "pissa" else METHODS[name]
    run(train_step(method, model=model, learning_rate=5e-3), second)
    assert losses(second)[0][1] < losses(first)[0][1]


def test_an_adapter_of_another_kind_is_refused(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    run(train_step(METHODS["dora"]), first)
    model = ModelConfig(path="org/tiny", adapter=str(first / artifacts.ADAPTER))
    with pytest.raises(UserError, match=r"method.kind: lora cannot go on with .* which is a dora adapter. Choose"):
        run(train_step(MethodConfig(), model=model), second)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", ["full", "dora", "saved", "qlora"])
def test_tokens_that_the_weights_lack_are_learned_and_merged(tmp_path: Path, name: str, tied: bool) -> None:
    method = {**METHODS, "full": MethodConfig(kind="full")}[name]
    out = make_run(tmp_path, base={**FEWER, "tie_word_embeddings": tied})
    with pytest.raises(UserError, match=r"model.resize_embeddings=true"):
        run(train_step(method), out)
    model = ModelConfig(path="org/tiny", resize_embeddings=True)
    run(train_step(method, model=model, learning_rate=5e-3), out)
    if name != "full":
        merge_adapter(out / "base", out / artifacts.ADAPTER, out / artifacts.MERGED, max_shard_size_bytes=1 << 30)
    config = artifacts.read_json(out / artifacts.MERGED / "config.json")
    assert (config["vocab_size"], config["tie_word_embeddings"]) == (320, tied)
    merged = AutoModelForCausalLM.from_pretrained(out / artifacts.MERGED, dtype=torch.float32)
    new = merged.get_input_embeddings().weight[310:]
    assert not torch.equal(new[0], new[1]), "rows that start alike have moved apart"
    if name != "full":
        adapted = adapters.load_adapter(_base(out), out / artifacts.ADAPTER, trainable=False)
        torch.testing.assert_close(_logits(merged), _logits(adapted), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("patterns", [(), ("*embed_tokens*",)])
def test_new_tokens_that_freezing_would_leave_alone_are_refused(tmp_path: Path, patterns: tuple[str, ...]) -> None:
    out = make_run(tmp_path, base={**FEWER, "tie_word_embeddings": False})
    model = ModelConfig(path="org/tiny", resize_embeddings=True)
    left = "lm_head" if patterns else "embed_tokens and lm_head"
    with pytest.raises(UserError, match=rf"the rows that {left} get for new tokens would not be trained"):
        run(train_step(MethodConfig(kind="freeze", patterns=patterns), model=model), out)
    run(train_step(MethodConfig(kind="freeze", patterns=("*embed_tokens*", "lm_head.*")), model=model), out)


@pytest.mark.parametrize(
    ("name", "goes_on"), [("lora", False), ("saved", False), ("grown", True), ("grown saved", True)]
)
def test_an_adapter_that_does_not_train_new_tokens_is_not_gone_on_with(
    tmp_path: Path, name: str, goes_on: bool
) -> None:
    first, second = (make_run(tmp_path / part, base=FEWER) for part in ("first", "second"))
    for out in (first, second):
        write_store(out / artifacts.DATA, [[sample] for sample in random_samples(20, vocabulary=310)])
    method = METHODS["saved"] if "saved" in name else MethodConfig(rank=4)
    run(train_step(method, model=ModelConfig(path="org/tiny", resize_embeddings="grown" in name), max_steps=1), first)
    adapter = str(first / artifacts.ADAPTER)
    step = train_step(method, model=ModelConfig(path="org/tiny", resize_embeddings=True, adapter=adapter), max_steps=1)
    if goes_on:
        run(step, second)
        return
    with pytest.raises(UserError, match=r"the rows that embed_tokens get for new tokens would not be trained: .*first"):
        run(step, second)
