"""GGUF headers: what is there is read, and no broken file is anything but a message."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from tunerun.errors import UserError
from tunerun.formats.ggml_types import TYPES
from tunerun.formats.gguf import GgufFile, GgufTensor
from tunerun.formats.gguf_fields import is_gguf_adapter
from tunerun.formats.gguf_header import read_gguf_header
from tunerun.formats.safetensors import read_header

TENSORS = [
    GgufTensor(name="token_embd.weight", shape=(7, 64), type=TYPES["Q8_0"]),
    GgufTensor(name="blk.0.attn_norm.weight", shape=(64,), type=TYPES["F32"]),
]


def write_file(path: Path) -> Path:
    header = gguf.GGUFWriter(None, "llama")
    header.add_name("tiny")
    header.add_uint32("llama.block_count", 1)
    header.add_token_list(["a", "b", "世界"])
    header.add_token_scores([0.0, -1.0, -2.0])
    header.add_bool("tokenizer.ggml.add_bos_token", True)
    with GgufFile(path, header, TENSORS) as file:
        file.write_rows("token_embd.weight", 0, np.full((7, 68), 3, np.uint8))
        file.write_rows("blk.0.attn_norm.weight", 0, np.ones((1, 64), np.float32).view(np.uint8))
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.gguf")
    header = read_gguf_header(path)
    assert header.fields["general.architecture"] == "llama"
    assert header.fields["tokenizer.ggml.tokens"] == ["a", "b", "世界"]
    assert header.fields["tokenizer.ggml.scores"] == [0.0, -1.0, -2.0]
    assert header.fields["tokenizer.ggml.add_bos_token"] is True
    by_package = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert header.tensors.keys() == by_package.keys()
    for name, tensor in header.tensors.items():
        assert (tensor.offset, tensor.bytes) == (by_package[name].data_offset, by_package[name].n_bytes)
        assert list(tensor.shape[::-1]) == by_package[name].shape.tolist()


def test_an_adapter_is_told_from_a_model_by_its_first_fields(tmp_path: Path) -> None:
    assert not is_gguf_adapter(write_file(tmp_path / "a.gguf"))
    header = gguf.GGUFWriter(None, "llama")
    header.add_type("adapter")
    header.add_string("adapter.type", "lora")
    with GgufFile(tmp_path / "b.gguf", header, ()):
        pass
    whole = (tmp_path / "b.gguf").read_bytes()
    assert is_gguf_adapter(tmp_path / "b.gguf")
    found = []
    for size in range(len(whole)):
        (tmp_path / "c.gguf").write_bytes(whole[:size])
        found.append(is_gguf_adapter(tmp_path / "c.gguf"))
    # What stands behind that field is not read.
    end = whole.index(b"general.type") + len("general.type") + 4 + 8 + len("adapter")
    assert found.index(True) == end
    assert all(found[end:])


def test_lists_that_are_not_kept_are_looked_through_all_the_same(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.gguf")
    kept, skipped = read_gguf_header(path), read_gguf_header(path, lists=False)
    assert skipped.tensors == kept.tensors
    lists = {key for key, value in kept.fields.items() if isinstance(value, list)}
    assert lists == {"tokenizer.ggml.tokens", "tokenizer.ggml.scores"}
    assert skipped.fields == {key: None if key in lists else value for key, value in kept.fields.items()}
    data = path.read_bytes()
    place = data.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 4 + 4 + 8
    for length in (2, len(data), 1 << 31, 1 << 62, (1 << 64) - 1):
        for number in range(3):
            # Each token has one length, and one byte or, the last of them, six.
            at = place + number * (8 + 1)
            path.write_bytes(data[:at] + struct.pack("<Q", length) + data[at + 8 :])
            with pytest.raises(UserError, match="broken"):
                read_gguf_header(path, lists=False)


@pytest.mark.parametrize("lists", [True, False])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, lists: bool) -> None:
    whole = write_file(tmp_path / "a.gguf").read_bytes()
    # The last tensor is followed by no padding that could be lost: 7 * 68 bytes, then 64 floats.
    for size in range(0, len(whole), 7):
        (tmp_path / "b.gguf").write_bytes(whole[:size])
        with pytest.raises(UserError, match="broken"):
            read_gguf_header(tmp_path / "b.gguf", lists=lists)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, b"GGML", "does not begin with GGUF"),
        (4, struct.pack("<I", 1), "version 1"),
        (8, struct.pack("<Q", 1 << 62), "claims"),
        (16, struct.pack("<Q", 1 << 40), "claims"),
        (24, struct.pack("<Q", 1 << 63), "early"),
    ],
)
def test_wrong_counts_are_named(tmp_path: Path, place: int, value: bytes, message: str) -> None:
    path = write_file(tmp_path / "a.gguf")
    data = bytearray(path.read_bytes())
    data[place : place + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_gguf_header(path)


def damage(data: bytes, header_bytes: int, generator: random.Random) -> bytes:
    """Changes a few bytes of the header, most often to values that hurt, or cuts the file."""
    broken = bytearray(data)
    for _ in range(generator.randint(1, 6)):
        place = generator.randrange(header_bytes)
        match generator.randrange(4):
            case 0:
                broken[place] = generator.randrange(256)
            case 1:
                broken[place : place + 8] = struct.pack(
                    "<Q", generator.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
                )
            case 2:
                del broken[place : place + generator.randint(1, 16)]
            case _:
                broken[place:place] = generator.randbytes(generator.randint(1, 16))
    return bytes(broken[: generator.choice([len(broken), len(broken), generator.randrange(len(broken) + 1)])])


@pytest.mark.slow
def test_a_thousand_damaged_headers_are_read_or_refused(tmp_path: Path) -> None:
    """Whatever passes has every tensor inside the file; everything else is a UserError, nothing slower or worse."""
    generator = random.Random(0)
    data = write_file(tmp_path / "a.gguf").read_bytes()
    path = tmp_path / "b.gguf"
    refused = 0
    for _ in range(1000):
        path.write_bytes(damage(data, 400, generator))
        try:
            header = read_gguf_header(path)
        except UserError as error:
            refused += 1
            with pytest.raises(UserError, match="broken"):
                read_gguf_header(path, lists=False)
            assert "broken" in str(error)
            continue
        assert read_gguf_header(path, lists=False).tensors == header.tensors
        size = path.stat().st_size
        assert all(tensor.offset + tensor.bytes <= size for tensor in header.tensors.values())
    assert refused > 500


@pytest.mark.slow
def test_a_thousand_damaged_safetensors_headers_are_read_or_refused(tmp_path: Path) -> None:
    generator = random.Random(1)
    entries = {
        "a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
        "b": {"dtype": "BF16", "shape": [8], "data_offsets": [48, 64]},
        "__metadata__": {"format": "pt"},
    }
    text = json.dumps(entries).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(64)
    path = tmp_path / "m.safetensors"
    refused = 0
    for _ in range(1000):
        path.write_bytes(damage(data, 8 + len(text), generator))
        try:
            table = read_header(path)
        except UserError:
            refused += 1
            continue
        assert all(info.offset + info.bytes <= path.stat().st_size for info in table.values())
    assert refused > 500
