import json

import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def render(built, messages, **values):
    environment = ImmutableSandboxedEnvironment()
    template = environment.from_string((built / "base" / "chat_template.jinja").read_text(encoding="utf-8"))
    return template.render(messages=messages, **values)


def test_transformers_builds_the_model_and_tokenizer_it_describes(built):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(built / "base"))
    tokenizer = AutoTokenizer.from_pretrained(built / "base")
    assert 4_500_000 < model.num_parameters() < 5_500_000
    assert len(tokenizer) == model.config.vocab_size
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert model.config.eos_token_id == tokenizer.eos_token_id
    # K-quants cut rows into blocks of 256.
    assert all(weight.shape[1] % 256 == 0 for weight in model.parameters() if weight.dim() == 2)
    assert torch.isfinite(model(torch.tensor([tokenizer("1 + 1").input_ids])).logits).all()


def test_transformers_reads_the_tokenizer_as_the_tokenizers_library_does(built):
    tokenizer = AutoTokenizer.from_pretrained(built / "base")
    lines = (built / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    for text in (json.loads(line)["text"] for line in lines):
        assert tokenizer(text).input_ids == tokenizer.backend_tokenizer.encode(text).ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_template_writes_turns_as_chatml_and_adds_no_system_turn(built):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    assert render(built, messages) == text
    assert render(built, messages[:1], add_generation_prompt=True).endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
    system = {"role": "system", "content": "Be brief."}
    assert render(built, [system, *messages]) == f"<|im_start|>system\nBe brief.<|im_end|>\n{text}"


def test_the_template_writes_tools_calls_and_responses(built):
    call = {"type": "function", "function": {"name": "get_time", "arguments": {"city": "Oslo"}}}
    messages = [
        {"role": "user", "content": "Time in Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "10:00"},
        {"role": "tool", "content": "10:01"},
    ]
    tools = [{"type": "function", "function": {"name": "get_time"}}]
    text = render(built, messages, tools=tools, add_generation_prompt=True)
    head, turns = text.split("<|im_end|>\n", 1)
    assert head.startswith("<|im_start|>system\n# Tools")
    assert '<tools>\n{"function": {"name": "get_time"}, "type": "function"}\n</tools>' in head
    asked = '\n<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert turns == (
        "<|im_start|>user\nTime in Oslo?<|im_end|>\n"
        f"<|im_start|>assistant{asked}{asked}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n10:00\n</tool_response>\n<tool_response>\n10:01\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
