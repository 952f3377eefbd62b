from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from tunerun.chat.mask import Renderer
from tunerun.chat.template import load_template
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.data.encode import Pair, kto, preference
from tunerun.data.messages import conversation
from tunerun.data.rows import Labelled, Preference, RowFault

NO_TOKENS = np.zeros(0, np.int64)
TEXTS = ["fine", "\nnot so fine", " x", "a\n", "你好", "<|im_end|>", "The user asks."]


@pytest.fixture(scope="module")
def tokenizer(chat_folder):
    return load_tokenizer(chat_folder)


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return Renderer(load_template(None, {}, "chatml"), tokenizer)


def said(prompt: str, answer: str):
    return conversation([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])


def encoded(renderer: Renderer, prompt: str, chosen: str, rejected: str) -> Pair:
    encoder = preference.encoder(renderer)
    ((pair,),) = encoder.encode(encoder.render(Preference(said(prompt, chosen), said(prompt, rejected))))
    return pair


def text_of(tokenizer, tokens) -> str:
    return tokenizer.backend.decode(tokens.tolist(), skip_special_tokens=False)


@pytest.mark.parametrize(("chosen", "rejected"), permutations(TEXTS, 2))
def test_both_sides_have_the_same_prompt_tokens_and_train_the_rest(renderer, tokenizer, chosen, rejected):
    pair = encoded(renderer, "Who are you?", chosen, rejected)
    start = pair.prompt_tokens
    assert pair.chosen[0][:start].tolist() == pair.rejected[0][:start].tolist()
    for (tokens, trained), answer in ((pair.chosen, chosen), (pair.rejected, rejected)):
        assert text_of(tokenizer, tokens) == (
            f"<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
        )
        end = text_of(tokenizer, tokens[: start + int(trained.sum())])
        assert end.endswith(f"{answer}<|im_end|>")
        assert not trained[:start].any() and trained[start : start + int(trained.sum())].all()


def test_a_token_over_the_edge_of_one_answer_is_trained_on_both_sides(renderer, tokenizer):
    pair = encoded(renderer, "q", "\nlines", "plain")
    assert text_of(tokenizer, pair.chosen[0][: pair.prompt_tokens]).endswith("assistant")
    assert text_of(tokenizer, pair.rejected[0][pair.rejected[1] == 1]) == "\nplain<|im_end|>"


def test_a_pair_that_fits_stays(renderer):
    pair = encoded(renderer, "q", "good", "bad")
    assert preference.fit(pair, 64, "fail", NO_TOKENS) == (pair, "")


def test_a_long_prompt_is_cut_alike_on_both_sides(renderer):
    pair = encoded(renderer, "why " * 99, "good " * 9, "bad")
    made, cut = preference.fit(pair, 96, "truncate_prompt", NO_TOKENS)
    assert cut == "prompt"
    assert len(made.chosen[0]) == 96 > len(made.rejected[0])
    start = made.prompt_tokens
    assert made.chosen[0][:start].tolist() == made.rejected[0][:start].tolist()
    for before, after in ((pair.chosen, made.chosen), (pair.rejected, made.rejected)):
        assert after[0][start:].tolist() == before[0][pair.prompt_tokens :].tolist()
        assert int(after[1].sum()) == int(before[1].sum())


def test_an_answer_is_cut_only_when_no_prompt_is_left_to_cut(renderer):
    pair = encoded(renderer, "q", "good " * 99, "bad")
    made, cut = preference.fit(pair, 32, "truncate_prompt", NO_TOKENS)
    assert (cut, len(made.chosen[0])) == ("answer", 32)
    assert made.rejected[0].tolist() == pair.rejected[0].tolist()


def test_a_pair_whose_difference_is_cut_off_is_dropped(renderer):
    pair = encoded(renderer, "q", "so " * 99 + "good", "so " * 99 + "bad")
    assert preference.fit(pair, 32, "truncate", NO_TOKENS) == (None, "answer")


def test_other_policies_for_long_pairs(renderer):
    pair = encoded(renderer, "q", "good " * 99, "bad")
    assert preference.fit(pair, 32, "drop", NO_TOKENS)[0] is None
    with pytest.raises(RowFault, match="too-long"):
        preference.fit(pair, 32, "fail", NO_TOKENS)
    long_prompt = encoded(renderer, "why " * 99, "good", "bad")
    assert preference.fit(long_prompt, 32, "truncate", NO_TOKENS)[0] is None


def test_answers_that_become_the_same_tokens_are_a_fault(renderer):
    # The tokenizer composes the accent.
    pair = encoded(renderer, "q", "e\u0301", "\u00e9")
    with pytest.raises(RowFault, match="the same tokens"):
        preference.fit(pair, 64, "drop", NO_TOKENS)


def test_earlier_answers_are_context(renderer, tokenizer):
    turns = [("user", "q"), ("assistant", "first"), ("user", "r"), ("assistant", "second")]
    whole = conversation([{"role": role, "content": content} for role, content in turns])
    row = Labelled(type(whole)(whole.messages, None, frozenset({1})), True)
    encoder = kto.encoder(renderer)
    ((made,),) = encoder.encode(encoder.render(row))
    tokens, trained = made.sample
    assert text_of(tokenizer, tokens[trained == 1]) == "second<|im_end|>"
    assert made.desirable is True


def test_a_preference_gives_kto_a_good_and_a_bad_answer(renderer, tokenizer):
    encoder = kto.encoder(renderer)
    rendered = encoder.render(Preference(said("q", "good"), said("q", "bad")))
    made = [example for (example,) in encoder.encode(rendered)]
    assert [example.desirable for example in made] == [True, False]
    assert [text_of(tokenizer, example.sample[0][example.sample[1] == 1]) for example in made] == [
        "good<|im_end|>",
        "bad<|im_end|>",
    ]
    assert [len(item) for item in rendered] == [len(item.text.text) for item in rendered]
