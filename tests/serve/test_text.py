from __future__ import annotations

import random

import pytest

from tunerun.serve.text import PieceDecoder, StopFilter, WindowDecoder, showing


def send(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    stop_filter, sent = StopFilter(stops), []
    for piece in pieces:
        sent.append(stop_filter.push(piece))
        if stop_filter.stopped:
            return "".join(sent), True
    return "".join(sent) + stop_filter.flush(), False


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The same by definition: the stop text that is complete first ends the text where it begins."""
    for length in range(1, len(text) + 1):
        starts = [length - len(stop) for stop in stops if text[:length].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@pytest.mark.parametrize("seed", range(300))
def test_the_result_does_not_depend_on_how_the_text_is_cut_into_pieces(seed):
    generator = random.Random(seed)
    text = "".join(generator.choices("aab\n", k=generator.randint(1, 14)))
    stops = ["".join(generator.choices("ab\n", k=generator.randint(1, 4))) for _ in range(generator.randint(0, 3))]
    borders = sorted(generator.sample(range(1, len(text)), generator.randint(0, len(text) - 1)))
    pieces = [text[start:stop] for start, stop in zip([0, *borders], [*borders, len(text)], strict=True)]
    assert send(pieces, stops) == cut(text, stops)


def test_text_that_cannot_begin_a_stop_is_sent_at_once():
    stop_filter = StopFilter(["END"])
    assert stop_filter.push("some text E") == "some text "
    assert stop_filter.push("N") == ""
    assert stop_filter.push("Dx") == ""
    assert stop_filter.stopped


def test_a_character_in_two_tokens_is_sent_whole():
    decoder = PieceDecoder({0: "你".encode()[:2], 1: "你".encode()[2:], 2: b"!"}.__getitem__)
    assert [decoder.push(token) for token in (0, 1, 2)] == ["", "你", "!"]


def test_half_a_character_at_the_end_is_dropped():
    decoder = PieceDecoder({0: b"a", 1: "你".encode()[:2]}.__getitem__)
    assert decoder.push(0) + decoder.push(1) + decoder.flush() == "a"
    window = WindowDecoder(decode_bytes)
    assert window.push(ord("a")) + window.push("你".encode()[0]) + window.flush() == "a"


@pytest.mark.parametrize("text", ["plain", "你好，世界", "naïve 🙂 café", "a\ufffdb"])
def test_the_window_decoder_gives_what_decoding_all_at_once_gives(text):
    window = WindowDecoder(decode_bytes)
    pieces = [window.push(byte) for byte in text.encode()]
    assert "".join(pieces) + window.flush() == text


def test_bytes_that_are_no_character_do_not_hold_back_the_rest():
    window = WindowDecoder(decode_bytes)
    pieces = [window.push(byte) for byte in b"\xff" * 12]
    assert any(pieces[:8])
    assert window.push(ord("a")).endswith("a")


def decode_bytes(tokens):
    return bytes(tokens).decode("utf-8", "replace")


def test_special_tokens_that_are_asked_for_have_their_text():
    special = {"<call>": [300], "two tokens": [1, 2], "plain": [97]}
    # The decoder drops 300, as decoders do with special tokens.
    dropping = PieceDecoder(lambda token: b"" if token == 300 else bytes([token]))
    decoder = showing(dropping, tuple(special), lambda text, *, plain: special[text])
    assert [decoder.push(token) for token in (97, 300, 98)] == ["a", "<call>", "b"]
    assert showing(dropping, (), lambda text, *, plain: []) is dropping
