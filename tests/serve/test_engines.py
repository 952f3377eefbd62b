"""Engines that compute in their process, asked as the gateway asks them."""

from __future__ import annotations

import dataclasses
import json
import queue
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunerun.errors import StageError
from tunerun.serve.engines import continuous, llamacpp, transformers
from tunerun.serve.engines.worker import Worker
from tunerun.serve.protocol import (
    Accepted,
    Cancel,
    EngineSpec,
    Finish,
    Generate,
    Message,
    Refused,
    Text,
    Tokenize,
    Tokens,
)

WAIT_SECONDS = 60
STARTS = {"llamacpp": llamacpp.start, "transformers": transformers.start}
ADAPTERS = ("polite", "brief", "loud")


@dataclass
class Heard:
    """What an engine said of one request."""

    text: str = ""
    scores: list[Any] = field(default_factory=list)
    end: Finish | Refused | None = None


class Asker:
    """An engine on a thread of this process."""

    def __init__(self, spec: EngineSpec) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.ended = list[int]()
        loaded: queue.SimpleQueue[Worker] = queue.SimpleQueue()

        def run() -> None:
            # Loaded here, too: threads that an engine starts are daemons then.
            service = STARTS[spec.engine](spec, self._messages.put)
            assert isinstance(service, Worker)
            loaded.put(service)
            service.run()

        threading.Thread(target=run, daemon=True).start()
        self.service = loaded.get(timeout=WAIT_SECONDS)

    def ask(self, *requests: Generate) -> list[Heard]:
        """Sends requests at once, numbered by their places, and waits for all answers."""
        self.ended.clear()
        for number, request in enumerate(requests):
            self.service.receive(dataclasses.replace(request, id=number))
        heard = {number: Heard() for number in range(len(requests))}
        while any(one.end is None for one in heard.values()):
            self.hear(heard)
        return list(heard.values())

    def hear(self, heard: Mapping[int, Heard]) -> Message:
        message = self._messages.get(timeout=WAIT_SECONDS)
        if isinstance(message, Text):
            heard[message.id].text += message.text
            heard[message.id].scores += message.scores
        elif isinstance(message, Finish | Refused):
            heard[message.id].end = message
            self.ended.append(message.id)
        return message


def question(text: str, **changes: Any) -> Generate:
    prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    fields = {
        "id": -1, "adapter": None, "prompt": prompt, "plain": False, "max_new_tokens": 24, "temperature": 0, "top_p": 1,
        "top_k": 0, "seed": 0, "stop": (),
    }  # fmt: skip
    return Generate(**fields | changes)


Make = Callable[..., Asker]


@pytest.fixture(scope="module")
def make(run_dir: Path) -> Make:
    (gguf,) = (run_dir / "export").glob("*.gguf")

    def start(engine: str, **fields: Any) -> Asker:
        weights = gguf if engine == "llamacpp" else run_dir / "merged"
        common = {
            "adapters": {},
            "tokenizer": str(run_dir / "merged"),
            "context_tokens": None,
            "stop": (),
            "threads": 1,
        }
        return Asker(EngineSpec(engine=engine, weights=str(weights), **common | fields))

    return start


@pytest.fixture(scope="module", params=[*STARTS, "continuous"])
def engine(request: pytest.FixtureRequest, make: Make) -> Asker:
    return batched(make) if request.param == "continuous" else make(request.param)


def batched(make: Make, **fields: Any) -> Asker:
    return make("transformers", batching="continuous", **fields)


def is_batched(engine: Asker) -> bool:
    return isinstance(engine.service._engine, continuous.ContinuousEngine)


@pytest.fixture(scope="module")
def llama(make: Make) -> Asker:
    return make("llamacpp")


@pytest.mark.parametrize("streams", [2, 8, 32])
def test_concurrent_answers_are_those_given_one_after_the_other(engine, streams):
    requests = [question(f"{number}: Who are you, fox?", logprobs=0) for number in range(streams)]
    serial = [engine.ask(request)[0] for request in requests]
    together = engine.ask(*requests)
    assert [one.text for one in together] == [one.text for one in serial]
    assert len({one.text for one in serial}) > 1
    if not is_batched(engine):
        # To the bit, and not only the same choices.
        assert [one.scores for one in together] == [one.scores for one in serial]
    ends = [one.end for one in together]
    assert all(isinstance(end, Finish) and end.reason in ("stop", "length") for end in ends)


def test_answers_progress_together(engine):
    long, *short = engine.ask(
        question("fox", max_new_tokens=200), *(question(f"{number}", max_new_tokens=4) for number in range(3))
    )
    assert long.end.completion_tokens > 20
    assert engine.ended[-1] == 0
    assert [one.end.completion_tokens for one in short] == [4, 4, 4]


def test_what_finds_no_slot_waits_and_a_cancel_frees_one(make, engine, monkeypatch):
    monkeypatch.setattr(engine.service._engine, "slots", 1)
    heard = {number: Heard() for number in range(3)}
    for number in heard:
        engine.service.receive(dataclasses.replace(question("fox", max_new_tokens=300), id=number))
    while not heard[0].text:
        engine.hear(heard)
    for number in (0, 1):
        engine.service.receive(Cancel(id=number))
    while any(one.end is None for one in heard.values()):
        engine.hear(heard)
    assert [one.end.reason for one in heard.values()][:2] == ["cancelled", "cancelled"]
    assert heard[1].text == ""
    assert heard[2].end.reason in ("stop", "length")
    assert heard[2].text.startswith(heard[0].text)


def test_probabilities_are_those_of_the_training_side(engine, run_dir):
    import torch

    from tunerun.chat.tokenizer import load_tokenizer
    from tunerun.models import generate, load

    tokenizer = load_tokenizer(run_dir / "merged").backend
    request = question("你是谁？", logprobs=5, max_new_tokens=12)
    (heard,) = engine.ask(request)
    model = load.load_model(run_dir / "merged", dtype=torch.float32, device="cpu")
    ids = tokenizer.encode(request.prompt, add_special_tokens=False).ids
    steps = list(generate.steps(model, ids, max_new_tokens=12, temperature=0, top_p=1, top_k=0, seed=0))
    # Half a character at the end of an answer has no text.
    told = b"".join(bytes(score["bytes"]) for score in heard.scores).decode(errors="replace")
    assert told.rstrip("\ufffd") == heard.text.rstrip("\ufffd")
    assert len(heard.scores) == heard.end.completion_tokens
    for score, step in zip(heard.scores, steps, strict=False):
        values, order = step.logits.double().log_softmax(0).sort(descending=True)
        # llama.cpp keeps float16 keys and values.
        assert score["logprob"] == pytest.approx(float(values[0]), abs=0.05)
        assert [item["logprob"] for item in score["top_logprobs"]] == pytest.approx(values[:5].tolist(), abs=0.05)
        assert score["top_logprobs"][0] == {key: score[key] for key in ("token", "bytes", "logprob")}
        assert int(order[0]) == step.token


def test_probabilities_do_not_depend_on_the_temperature(engine):
    # One after the other: what is beside an answer in its batch may change its bits.
    cold, warm = (engine.ask(question("fox", logprobs=3, max_new_tokens=1, temperature=t))[0] for t in (0, 1.5))
    assert cold.scores[0]["top_logprobs"] == warm.scores[0]["top_logprobs"]


def test_a_stop_text_takes_the_tokens_that_it_cuts_off_with_it(engine):
    (whole,) = engine.ask(question("fox", logprobs=0, max_new_tokens=30))
    for start in range(3, 20, 4):
        stop = whole.text[start : start + 3]
        (heard,) = engine.ask(question("fox", logprobs=0, max_new_tokens=30, stop=(stop,)))
        assert heard.text == whole.text[: whole.text.index(stop)]
        assert heard.scores == whole.scores[: len(heard.scores)]
        told = [bytes(score["bytes"]) for score in heard.scores]
        assert b"".join(told).decode(errors="replace").startswith(heard.text)
        assert len(b"".join(told[:-1]).decode(errors="ignore")) <= len(heard.text)


def test_a_prompt_longer_than_a_batch_gives_the_same_answer_beside_others(make):
    engine = make("llamacpp", context_tokens=2048)
    long = question("The quick brown fox jumps over the lazy dog. " * 40, logprobs=0)
    (alone,) = make("llamacpp", context_tokens=2048).ask(long)
    assert len(engine.service._engine.encode(long.prompt, plain=False)) > 600
    beside, *_ = engine.ask(long, *(question(f"{number}") for number in range(3)))
    assert (beside.text, beside.scores) == (alone.text, alone.scores)


def test_the_tokens_of_a_prompt_are_told(engine, run_dir):
    from tunerun.chat.tokenizer import load_tokenizer

    engine.service.receive(Tokenize(id=7, prompt="Who are you?", plain=True))
    found = engine.hear({})
    assert found == Tokens(id=7, ids=tuple(load_tokenizer(run_dir / "merged").backend.encode("Who are you?").ids))


SCHEMAS: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "fields": (
        {
            "type": "object",
            "properties": {"name": {"enum": ["fox", "dog"]}, "age": {"type": "integer"}},
            "required": ["name", "age"],
        },
        lambda found: (
            set(found) == {"name", "age"} and found["name"] in ("fox", "dog") and found["age"] == int(found["age"])
        ),
    ),
    "list": (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
        lambda found: len(found) in (2, 3) and all(isinstance(item, bool) for item in found),
    ),
    "reference": ({"$ref": "#/$defs/one", "$defs": {"one": {"const": "你好"}}}, lambda found: found == "你好"),
    "pattern": ({"type": "string", "pattern": "^a{2}[0-9]$"}, lambda found: re.fullmatch("aa[0-9]", found) is not None),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_follows_a_json_schema(llama, name):
    schema, fits = SCHEMAS[name]
    asked = [question("fox", json_schema=schema, max_new_tokens=100, temperature=t, seed=3) for t in (0, 1, 2)]
    free, *bound = llama.ask(question("fox"), *asked)
    assert [one.end.reason for one in bound] == ["stop"] * 3
    assert all(fits(json.loads(one.text)) for one in bound), bound
    assert free.text == llama.ask(question("fox"))[0].text


def test_an_empty_schema_gives_any_json_object(llama):
    whole = 0
    for heard in llama.ask(
        *(question("fox", json_schema={}, max_new_tokens=60, temperature=2, seed=n) for n in range(8))
    ):
        assert heard.text.startswith("{")
        if heard.end.reason == "stop":
            whole += isinstance(json.loads(heard.text), dict)
    assert whole


FAULTY_SCHEMAS = {
    "unknown type": {"type": "fox"},
    "unresolved reference": {"$ref": "#/$defs/none"},
    "another address": {"$ref": "https://example.org/schema.json"},
    "many items": {"type": "array", "items": {}, "minItems": 10**9},
    "many characters": {"type": "string", "maxLength": 10**9},
    "a long pattern": {"type": "string", "pattern": "^(a{1,100000})$"},
    "half a pattern": {"type": "string", "pattern": "^(a"},
    "no schema": {"properties": 1},
    "deep": json.loads('{"items":' * 200 + "{}" + "}" * 200),
    "left recursion": {"$ref": "#"},
}


@pytest.mark.parametrize("name", FAULTY_SCHEMAS)
def test_a_schema_that_cannot_be_followed_is_refused(llama, name):
    refused, answered = llama.ask(question("fox", json_schema=FAULTY_SCHEMAS[name]), question("fox"))
    assert isinstance(refused.end, Refused)
    assert refused.end.code == "unsupported"
    assert isinstance(answered.end, Finish)


def test_what_an_engine_cannot_do_is_not_among_its_abilities(engine):
    (heard,) = engine.ask(question("fox", json_schema={}, max_new_tokens=2))
    assert isinstance(heard.end, Finish) == ("json" in engine.service.ready.abilities)
    assert "logprobs" in engine.service.ready.abilities


@pytest.fixture(scope="module")
def adapters(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRA adapters that each change every answer, as folders and as GGUF files beside them."""
    import torch

    from tunerun.config.schema import MethodConfig
    from tunerun.models import adapters, load

    out = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(ADAPTERS):
        model = load.load_model(run_dir / "merged", dtype=torch.float32, device="cpu")
        adapted = adapters.add_adapter(model, MethodConfig(rank=4 + seed, alpha=8.0), seed=seed)
        with torch.no_grad():
            for key, parameter in adapted.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(0, 0.05)
        adapters.save_adapter(adapted, out / name, base_name="tiny")
        write_gguf(out / name, out / f"{name}.gguf")
    return {name: out / name for name in ADAPTERS}


MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, path: Path) -> None:
    """Writes an adapter as llama.cpp reads it (convert_lora_to_gguf.py)."""
    from gguf import GGUFWriter
    from safetensors.numpy import load_file

    writer = GGUFWriter(path, "qwen2")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for key, value in load_file(folder / "adapter_model.safetensors").items():
        layer, _, rest = key.removeprefix("base_model.model.model.layers.").partition(".")
        module, part = rest.removesuffix(".weight").rsplit(".", 1)
        writer.add_tensor(f"blk.{layer}.{MODULES[module]}.weight.{part.lower()}", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("engine_name", STARTS)
def test_each_of_several_adapters_answers_as_if_it_were_alone(make, adapters, engine_name):
    suffix = ".gguf" if engine_name == "llamacpp" else ""
    paths = {name: f"{folder}{suffix}" for name, folder in adapters.items()}
    asked = [question(text, logprobs=0) for text in ("fox", "Who are you?")]

    def by(adapter: str | None) -> Sequence[Generate]:
        return [dataclasses.replace(one, adapter=adapter) for one in asked]

    alone = {name: make(engine_name, adapters={name: path}).ask(*by(name)) for name, path in paths.items()}
    base = make(engine_name).ask(*by(None))
    engine = make(engine_name, adapters=paths)
    mixed = engine.ask(*by("loud"), *by(None), *by("polite"), *by("brief"))
    expected = [*alone["loud"], *base, *alone["polite"], *alone["brief"]]
    assert [(one.text, one.scores) for one in mixed] == [(one.text, one.scores) for one in expected]
    assert len({one.text for one in expected}) == len(expected)
    refused = engine.ask(*by("unknown"))
    assert all(isinstance(one.end, Refused) for one in refused)


def test_a_batch_draws_each_answer_by_its_own_seed_and_rule(make):
    single, engine = make("transformers"), batched(make)
    rules = [{"temperature": 0}, {"temperature": 1.5, "top_k": 5}, {"temperature": 1.0, "top_p": 0.5}]
    asked = [question("fox", seed=seed, **rule) for rule in rules for seed in (1, 2)]
    texts = [one.text for one in engine.ask(*asked)]
    assert texts == [single.ask(one)[0].text for one in asked]
    # Two seeds of each rule; the greedy answer needs none.
    assert len(set(texts)) == len(asked) - 1


def test_a_long_prompt_joins_a_batch_in_parts_and_changes_no_answer(make, monkeypatch):
    monkeypatch.setattr(continuous, "_BATCH_TOKENS", 64)
    engine = batched(make)
    text = "The quick brown fox. " * 40
    asked = [question(text), question("fox", max_new_tokens=100), question(f"{text} Who?")]
    alone = [engine.ask(one)[0] for one in asked]
    assert len(engine.service._engine.encode(text, plain=False)) > 2 * 64
    assert [one.text for one in engine.ask(*asked)] == [one.text for one in alone]


def test_batches_answer_with_an_adapter(make, adapters):
    asked = [question(text, adapter="polite") for text in ("fox", "Who are you?", "你是谁？")]
    one = {"polite": str(adapters["polite"])}
    expected = [make("transformers", adapters=one).ask(request)[0].text for request in asked]
    assert [heard.text for heard in batched(make, adapters=one).ask(*asked)] == expected


def test_an_engine_whose_batches_have_failed_ends(make, monkeypatch):
    engine = batched(make).service._engine
    monkeypatch.setattr(engine._model, "forward", lambda **_: 1 / 0)
    answer = engine.generate([1, 2, 3], 4, question("fox"))
    assert next(answer) is None
    with pytest.raises(SystemExit, match="batching has ended"):
        next(answer)


def test_a_model_with_an_attention_of_its_own_is_not_batched(tmp_path):
    from transformers import FalconConfig, FalconForCausalLM

    from tests.tiny import tiny_qwen2

    folder = tiny_qwen2(tmp_path / "model")
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    FalconForCausalLM(
        FalconConfig(vocab_size=rows, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(folder)
    spec = EngineSpec(
        engine="transformers", weights=str(folder), adapters={}, tokenizer=None, context_tokens=None, stop=(), threads=1
    )
    with pytest.raises(StageError, match="FalconForCausalLM has an attention of its own"):
        transformers.start(dataclasses.replace(spec, batching="continuous"), print)


def test_llama_cpp_applies_an_adapter_as_peft_does(make, adapters):
    asked = question("fox", adapter="polite", max_new_tokens=8)
    texts = {
        name: make(name, adapters={"polite": f"{adapters['polite']}{suffix}"}).ask(asked)[0].text
        for name, suffix in (("llamacpp", ".gguf"), ("transformers", ""))
    }
    assert texts["llamacpp"].rstrip("\ufffd") == texts["transformers"].rstrip("\ufffd")


def test_accepted_comes_before_anything_else(engine):
    engine.service.receive(dataclasses.replace(question("fox", max_new_tokens=1), id=3))
    heard = {3: Heard()}
    assert isinstance(engine.hear(heard), Accepted)
    while heard[3].end is None:
        engine.hear(heard)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_in_few_bits_are_those_of_the_training_side(make, run_dir, bits):
    pytest.importorskip("bitsandbytes")
    import torch

    from tunerun.chat.tokenizer import load_tokenizer
    from tunerun.models import generate, load
    from tunerun.plan.steps import Quantisation

    asked = question("fox", logprobs=1, max_new_tokens=4)
    kept = Quantisation(bits=bits, double=True)
    (heard,) = make("transformers", quantisation=kept).ask(asked)
    model = load.load_model(run_dir / "merged", dtype=torch.float32, device="cpu", quantisation=kept).eval()
    ids = load_tokenizer(run_dir / "merged").backend.encode(asked.prompt, add_special_tokens=False).ids
    first = next(generate.steps(model, ids, max_new_tokens=1, temperature=0, top_p=1, top_k=0, seed=0))
    assert heard.scores[0]["logprob"] == pytest.approx(
        float(first.logits.double().log_softmax(0)[first.token]), abs=1e-6
    )
    (whole,) = make("transformers").ask(asked)
    assert heard.scores[0]["logprob"] != whole.scores[0]["logprob"]
