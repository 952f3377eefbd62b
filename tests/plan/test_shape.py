import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunerun.config import typed
from tunerun.config.schema import ModelConfig, ShapeConfig
from tunerun.errors import UserError
from tunerun.paths import resolve_asset
from tunerun.plan import trained
from tunerun.plan.shape import is_complete, read_shape, sizes

ROOT = Path(__file__).resolve().parents[2]

# Parameters as the makers publish them (model cards and safetensors metadata), in billions.
PUBLISHED = {
    "qwen2.5-0.5b": 0.494,
    "qwen2.5-1.5b": 1.544,
    "qwen2.5-3b": 3.086,
    "qwen2.5-7b": 7.616,
    "qwen2.5-14b": 14.77,
    "qwen2.5-32b": 32.76,
    "qwen2.5-72b": 72.71,
    "qwen3-0.6b": 0.596,
    "qwen3-1.7b": 1.72,
    "qwen3-4b": 4.02,
    "qwen3-8b": 8.19,
    "llama2-7b": 6.738,
    "llama3.1-8b": 8.030,
    "llama3.2-1b": 1.236,
    "llama3.2-3b": 3.213,
    "gemma-2b-it": 2.506,
    "mistral-7b": 7.248,
    "internlm2-1.8b-chat": 1.889,
    "internlm2-7b-chat": 7.738,
    "deepseek-r1-distill-qwen-1.5b": 1.777,
    "deepseek-r1-distill-qwen-7b": 7.616,
}


def option(name: str) -> ModelConfig:
    data = yaml.safe_load((ROOT / f"conf/model/{name}.yaml").read_text(encoding="utf-8"))
    model, problems = typed.build(ModelConfig, data, "model")
    assert model is not None, problems
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_as_many_parameters_as_published(name):
    assert sizes(option(name).shape).parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=1.5e-3)


def test_every_option_but_local_has_a_path_and_a_complete_shape():
    for file in (ROOT / "conf/model").glob("*.yaml"):
        model = option(file.stem)
        assert (model.path is None) == (file.stem == "local"), file
        assert is_complete(model.shape) == (file.stem != "local"), file


def test_the_shipped_model_has_the_shape_of_its_option():
    folder = Path(resolve_asset("tunerun://sprout"))
    if not (folder / "config.json").is_file():
        pytest.skip(f"needs the shipped model, which is not at {folder}")
    assert read_shape(folder) == option("sprout").shape


def test_missing_and_impossible_sizes_are_named_together():
    with pytest.raises(UserError) as error:
        sizes(ShapeConfig(architecture="LlamaForCausalLM", layers=0, hidden=64, intermediate=128, heads=4, kv_heads=2))
    assert [problem.where for problem in error.value.problems] == ["model.shape.vocabulary", "model.shape.layers"]


SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


@pytest.mark.parametrize(
    ("model_type", "extra"),
    [
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 32}),
        ("llama", {}),
        ("llama", {"attention_bias": True}),
        ("mistral", {"head_dim": 32}),
        ("gemma", {"head_dim": 32, "num_key_value_heads": 1}),
        ("gemma2", {"head_dim": 32}),
        ("gemma3_text", {"head_dim": 32}),
    ],
)
def test_a_folder_has_the_parameters_that_transformers_builds(model_type, extra, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**SMALL, **extra})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    built = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert dict(trained.weights(sizes(shape))) == built
    assert sizes(shape).parameters == sum(built.values())
    assert shape.context == 128


def write(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_what_config_json_leaves_out_is_the_default_of_the_class(tmp_path):
    config = {
        key: value for key, value in SMALL.items() if key not in ("num_key_value_heads", "max_position_embeddings")
    }
    write(tmp_path, {**config, "architectures": ["GemmaForCausalLM"]})
    shape = read_shape(tmp_path)
    assert (shape.kv_heads, shape.tied_embeddings, shape.context) == (4, True, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "config.json:1: is not JSON"),
        ('{"architectures": ["BertForMaskedLM"]}', "BertForMaskedLM is not a model that continues text"),
        ('{"architectures": ["LlamaForCausalLM"]}', "has no 'num_attention_heads'"),
        ("{}", "has no 'architectures'"),
        ("[]", "is not an object"),
        ('{"architectures": []}', "has no 'architectures'"),
    ],
)
def test_a_folder_without_a_readable_config_is_refused(text, message, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json") as error:
        read_shape(tmp_path)
    assert message in str(error.value)


def test_of_an_architecture_without_known_sizes_there_is_the_name_alone(tmp_path):
    write(tmp_path, {"architectures": ["StableLmForCausalLM"]})
    shape = read_shape(tmp_path)
    assert shape.architecture == "StableLmForCausalLM"
    assert not is_complete(shape)
