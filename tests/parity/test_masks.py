from __future__ import annotations

import random
from itertools import groupby

import pytest

from tests.parity.chat_models import TEMPLATES, TEXTS, TOOL, conversation, template_of, theirs, write_model
from tunerun.chat.faults import ChatFault
from tunerun.chat.mask import Renderer
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.data.encode import sft

END = {
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "<｜end▁of▁sentence｜>",
    "google-gemma-2-2b-it": "<end_of_turn>",
    "meta-llama-Llama-3.2-3B-Instruct": "<|eot_id|>",
    "microsoft-Phi-3.5-mini-instruct": "<|end|>",
    "mistralai-Mistral-Nemo-Instruct-2407": "</s>",
}
"""How a template ends the assistant's turn; the others by `<|im_end|>`."""
NO_SYSTEM = frozenset({"google-gemma-2-2b-it"})
NEEDS_TOOLS = frozenset({"NousResearch-Hermes-3-Llama-3.1-8B-tool_use"})
SPLIT_ONLY = frozenset({"Qwen-Qwen3-0.6B", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"})
"""Templates that drop the reasoning from history, even an empty one."""
SYSTEM_MOVES = frozenset({"mistralai-Mistral-Nemo-Instruct-2407"})
"""Templates that show the system prompt with the last user message only."""


class Model:
    """A public template on a small tokenizer, by tunerun and by transformers."""

    def __init__(self, folder, chat_folder, text, **options):
        write_model(folder, chat_folder / "tokenizer.json", text, **options)
        self.tokenizer = load_tokenizer(folder)
        self.template = load_template(folder, self.tokenizer.named)
        self.theirs = theirs(folder)

    def encode(self, messages, tools=None, untrained=frozenset(), **options):
        renderer = Renderer(self.template, self.tokenizer, **options)
        return sft.encode(renderer.rows(messages, tools, untrained), self.tokenizer)

    def text(self, tokens) -> str:
        return self.tokenizer.backend.decode(tokens.tolist(), skip_special_tokens=False)

    def trained(self, sample) -> list[str]:
        """The trained texts of a sample, one for each run of trained tokens."""
        tokens, flags = sample
        runs = [[index for index, _ in run] for flag, run in groupby(enumerate(flags), lambda item: item[1]) if flag]
        return [self.text(tokens[run]) for run in runs]


@pytest.fixture(params=TEMPLATES)
def case(request, shared_dir, chat_folder, tmp_path):
    name = request.param
    model = Model(tmp_path, chat_folder, template_of(shared_dir, name))
    tools = [TOOL] if name in NEEDS_TOOLS else None
    return model, name, tools, END.get(name, "<|im_end|>")


def chats(name: str, count: int):
    source = random.Random(name)
    return [conversation(source, system=0.0 if name in NO_SYSTEM else 0.4) for _ in range(count)]


def answers(messages) -> list[str]:
    return [message["content"].strip() for message in messages if message["role"] == "assistant"]


@pytest.mark.shared
def test_each_turn_is_trained_as_it_is_served(case):
    model, name, tools, end = case
    for messages in chats(name, 25):
        samples = model.encode(messages, tools, multi_turn="split")
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        assert len(samples) == len(turns)
        for (tokens, flags), turn in zip(samples, turns, strict=True):
            served = model.theirs.apply_chat_template(
                messages[:turn], tools=tools, add_generation_prompt=True, tokenize=False
            )
            if "strftime_now" not in model.template.text:
                first = int(flags.argmax())
                assert model.text(tokens[:first]) == model.tokenizer.backend.normalizer.normalize_str(served)
            assert tokens.tolist().count(model.tokenizer.token_id("bos_token")) <= 1, "no doubled BOS"
            (written,) = model.trained((tokens, flags))
            answer = model.tokenizer.backend.normalizer.normalize_str(messages[turn]["content"].strip())
            assert written.endswith(answer + end)
            assert written.removesuffix(answer + end) in ("", "<think>\n\n</think>\n\n")


@pytest.mark.shared
def test_whole_conversations_train_every_answer_or_ask_for_a_split(case):
    model, name, tools, end = case
    for messages in chats(name, 25):
        differs = name in SPLIT_ONLY or (name in SYSTEM_MOVES and messages[0]["role"] == "system")
        if differs and len(answers(messages)) > 1:
            with pytest.raises(ChatFault, match="multi_turn=split") as caught:
                model.encode(messages, tools)
            assert caught.value.reason == "history-differs"
            continue
        (sample,) = model.encode(messages, tools)
        written = model.trained(sample)
        expected = [model.tokenizer.backend.normalizer.normalize_str(text) + end for text in answers(messages)]
        assert [text.removeprefix("<think>\n\n</think>\n\n") for text in written] == expected


@pytest.mark.shared
def test_what_is_trained_follows_the_settings(case):
    model, name, tools, end = case
    messages = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * 3, ("a?", "one", "b?", "two", "c?", "three"), strict=True)
    ]
    whole = {"multi_turn": "split"} if name in SPLIT_ONLY else {}

    def written(**options) -> list[str]:
        samples = model.encode(messages, tools, **{**whole, **options})
        return [text.removeprefix("<think>\n\n</think>\n\n") for sample in samples for text in model.trained(sample)]

    assert written() == [text + end for text in ("one", "two", "three")]
    assert written(train_on="last") == ["three" + end]
    assert written(untrained=frozenset({1, 3})) == ["three" + end]
    assert written(untrained=frozenset({1, 5})) == ["two" + end]
    ((_, flags),) = model.encode(messages, tools, train_on="all")
    assert flags.all()


@pytest.mark.shared
def test_the_end_of_turn_is_trained_where_padding_is_the_same_token(case):
    model, name, tools, end = case
    assert model.tokenizer.token_id("pad_token") == model.tokenizer.token_id("eos_token")
    ends = model.tokenizer.backend.token_to_id(end)
    for messages in chats(name, 10):
        for tokens, flags in model.encode(messages, tools, multi_turn="split"):
            assert tokens[flags == 1][-1] == ends


@pytest.mark.shared
def test_an_end_of_turn_that_takes_the_newline_along_is_trained(shared_dir, chat_folder, tmp_path):
    text = template_of(shared_dir, "microsoft-Phi-3.5-mini-instruct")
    model = Model(tmp_path, chat_folder, text, end_takes_space=True)
    for messages in chats("taking", 20):
        (sample,) = model.encode(messages)
        tokens, flags = sample
        # The token takes the newline after it along, so the prompt's last token does, too.
        assert len(model.trained(sample)) == len(answers(messages))
        assert flags.sum() > len(answers(messages))
        ends = model.tokenizer.backend.token_to_id("<|end|>")
        assert ((tokens == ends) & (flags == 1)).sum() == len(answers(messages))


# What TRL trains beside the answer and its end: the end of the prompt before it, and what follows the end of turn.
# The model is never asked for either: the prompt is given when it serves, and the server stops at the end of turn.
TRL_EXTRAS = {
    "qwen2_5": ("\n", "\n", ""),
    "gemma": ("", "\n", ""),
    "phi3_5": ("", "\n", "</s>"),
    "llama3": ("", "", ""),
}
# The stored templates that TRL knows by their very text, each in one of the ten or in TRL itself.
TRL_NAMES = {
    "Qwen-Qwen2.5-7B-Instruct": "qwen2_5",
    "google-gemma-2-2b-it": "gemma",
    "microsoft-Phi-3.5-mini-instruct": "phi3_5",
}


@pytest.fixture(scope="module")
def trl_templates():
    return pytest.importorskip(
        "trl.chat_template_utils", reason="masks are compared with TRL's, which is not installed"
    )


@pytest.mark.shared
@pytest.mark.parametrize("name", TEMPLATES)
def test_trl_knows_three_of_the_ten_templates(shared_dir, chat_folder, tmp_path, trl_templates, name):
    model = Model(tmp_path, chat_folder, template_of(shared_dir, name))
    if name in TRL_NAMES:
        found = trl_templates.get_training_chat_template(model.theirs)
        assert found == getattr(trl_templates, f"{TRL_NAMES[name]}_training_chat_template")
    else:
        # It asks Hermes' template for a rendering without tools first, on which that fails.
        with pytest.raises((ValueError, TypeError), match=r"not supported|not iterable"):
            trl_templates.get_training_chat_template(model.theirs)


@pytest.mark.parametrize("name", TRL_EXTRAS)
def test_masks_are_those_of_trl_less_what_the_model_never_writes(chat_folder, tmp_path, trl_templates, name):
    model = Model(tmp_path, chat_folder, getattr(trl_templates, f"{name}_chat_template"))
    training = trl_templates.get_training_chat_template(model.theirs)
    before, after, closing = TRL_EXTRAS[name]
    source = random.Random(name)
    for _ in range(60):
        messages = conversation(source, system=0.0 if name == "gemma" else 0.4)
        out = model.theirs.apply_chat_template(
            messages, chat_template=training, return_dict=True, return_assistant_tokens_mask=True
        )
        (sample,) = model.encode(messages)
        tokens, flags = sample
        assert tokens.tolist() == out["input_ids"]
        others = flags.copy()
        others[:] = out["assistant_masks"]
        assert (others >= flags).all(), "TRL trains all that tunerun trains"
        expected = [before + text + after for text in model.trained(sample)]
        expected[-1] += closing
        assert model.trained((tokens, others)) == expected
        if not before + after + closing:
            assert (others == flags).all()


@pytest.mark.shared
def test_tool_calls_are_masked_as_trl_masks_them(shared_dir, trl_templates):
    folder = shared_dir / "tokenizers" / "qwen2.5"
    tokenizer = load_tokenizer(folder)
    renderer = Renderer(load_template(folder, tokenizer.named), tokenizer)
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>")
    source, newline = random.Random(5), tokenizer.backend.token_to_id("Ċ")
    for _ in range(40):
        messages = conversation(source, TEXTS, system=0.4, calls=0.7)
        out = other.apply_chat_template(
            messages,
            tools=[TOOL],
            chat_template=trl_templates.qwen2_5_training_chat_template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ((tokens, flags),) = sft.encode(renderer.rows(messages, [TOOL]), tokenizer)
        assert tokens.tolist() == out["input_ids"]
        extra = [index for index, flag in enumerate(out["assistant_masks"]) if flag and not flags[index]]
        turns = sum(message["role"] == "assistant" for message in messages)
        assert (tokens[extra] == newline).all()
        assert len(extra) == 2 * turns
        assert all(out["assistant_masks"][index] for index in flags.nonzero()[0])
