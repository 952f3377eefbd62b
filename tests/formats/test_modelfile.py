"""A Modelfile comes back as it was written, or says what Ollama would not keep."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunerun.chat.go_template import is_printed, literal, render
from tunerun.formats.modelfile import Modelfile, read_modelfile, write_modelfile

TEXTS = st.text(st.sampled_from('ab {}"\\\n\t你🙂\u3000\u200b#'), max_size=20).map(str.strip)


def test_a_modelfile_reads_well() -> None:
    content = Modelfile(
        weights="demo.gguf",
        parameters=(("num_ctx", "512"), ("stop", "<|im_end|>"), ("stop", '<"end">')),
        system="Be kind.",
        template="{{ $.System }}\n",
        requires="0.30.11",
    )
    text = write_modelfile(content, ["a comment"])
    assert text == (
        "# a comment\nREQUIRES 0.30.11\nFROM ./demo.gguf\nPARAMETER num_ctx 512\n"
        'PARAMETER stop "<|im_end|>"\nPARAMETER stop """<"end">"""\n'
        'SYSTEM "Be kind."\nTEMPLATE """{{ $.System }}\n"""\n'
    )
    assert read_modelfile(text) == content
    assert content.stops == ("<|im_end|>", '<"end">')


@given(TEXTS.filter(bool), TEXTS.filter(bool))
def test_what_is_written_comes_back_and_what_would_not_is_named(system: str, stop: str) -> None:
    content = Modelfile(weights="m.gguf", parameters=(("stop", stop),), system=system)
    found = read_modelfile(write_modelfile(content))
    assert found.system == (None if "SYSTEM" in content.lost() else system)
    assert found.stops == (() if "PARAMETER stop" in content.lost() else (stop,))


@given(st.text(max_size=30))
def test_any_text_survives_in_a_template(text: str) -> None:
    text = text.replace("\r", "")
    content = Modelfile(weights="m.gguf", template=literal(text) + "{{ $.System }}")
    assert content.lost() == ()
    template = read_modelfile(write_modelfile(content)).template
    assert template is not None
    assert render(template, [{"role": "user", "content": "x"}]) == text


def test_characters_that_ollama_drops_are_known() -> None:
    assert all(is_printed(letter) for letter in "a é你🙂▁｜\n\t")
    assert not any(is_printed(letter) for letter in "\u3000\u200b\u200d\x00\x1b\ue000\u00a0")


@pytest.mark.parametrize("text", ["", "SYSTEM x\n", 'FROM ./m\nSYSTEM """x\n'])
def test_a_broken_modelfile_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no FROM line|does not end"):
        read_modelfile(text)
