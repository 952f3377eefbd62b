from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import CHATML, tiny_qwen2
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.errors import StageError
from tunerun.models import load
from tunerun.models.attention import SEGMENTS
from tunerun.models.folder import set_chat_template


def test_a_model_is_written_in_shards_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    base = tiny_qwen2(tmp_path / "base")
    model = load.load_model(base, dtype=torch.float32, device="cpu")
    target = tmp_path / "saved"
    load.save_model(model, target, model.state_dict(), base=base, dtype=torch.bfloat16, max_shard_size_bytes=60_000)
    shards = sorted(target.glob("*.safetensors"))
    assert len(shards) > 1
    assert all(shard.stat().st_size < 65_000 for shard in shards)
    assert load.saved_dtype(target) == torch.bfloat16
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (target / name).read_bytes() == (base / name).read_bytes()
    back = load.load_model(target, dtype=torch.float32, device="cpu")
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor.to(torch.bfloat16).float())


def test_tied_embeddings_are_written_once(tmp_path: Path) -> None:
    base = tiny_qwen2(tmp_path / "base", tie_word_embeddings=True)
    model = load.load_model(base, dtype=torch.float32, device="cpu")
    target = tmp_path / "saved"
    load.save_model(model, target, model.state_dict(), base=base, dtype=torch.float32, max_shard_size_bytes=10**9)
    names = set(load_file(target / "model.safetensors"))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    back = load.load_model(target, dtype=torch.float32, device="cpu")
    assert torch.equal(back.lm_head.weight, model.lm_head.weight)


def test_replacing_the_template_leaves_one_template(tmp_path: Path) -> None:
    base = tiny_qwen2(tmp_path / "base", template=CHATML)
    set_chat_template(base, "{{ messages[0]['content'] }}")
    template = load_template(base, load_tokenizer(base).named)
    assert template is not None
    assert template.render([{"role": "user", "content": "hello"}]) == "hello"
    assert "chat_template" not in json.loads((base / "tokenizer_config.json").read_text())


def test_random_weights_follow_their_seed(tmp_path: Path) -> None:
    base = tiny_qwen2(tmp_path / "base")
    first, again, other = (
        load.random_model(base, seed=seed, device="cpu").get_input_embeddings().weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_packed_rows_are_not_computed_by_a_model_that_may_mix_them(tmp_path: Path) -> None:
    base = tiny_qwen2(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    with pytest.raises(StageError, match="MambaForCausalLM is not among the architectures that are trained"):
        load.load_model(base, dtype=torch.float32, device="cpu", attention=SEGMENTS)


def test_pickled_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    base = tiny_qwen2(tmp_path / "base")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(StageError, match="the model cannot be loaded"):
        load.load_model(base, dtype=torch.float32, device="cpu")
    weights.unlink()
    torch.save({}, base / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load.load_model(base, dtype=torch.float32, device="cpu")
