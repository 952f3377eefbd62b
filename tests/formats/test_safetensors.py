"""Reading and writing model folders, against the safetensors package."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunerun.errors import StageError, UserError
from tunerun.formats.safetensors import INDEX, SINGLE, ModelWriter, read_header, read_rows, read_table, read_tensor

TENSORS = {
    "b": torch.arange(24, dtype=torch.bfloat16).reshape(4, 6),
    "a": torch.linspace(-1, 1, 15).reshape(3, 5),
    "scalar": torch.tensor(3.5),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / SINGLE)
    return tmp_path


def write_raw(file: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def copy_folder(source: Path, target: Path, max_shard_size_bytes: int) -> dict[str, torch.Tensor]:
    target.mkdir()
    table = read_table(source)
    slots = [(name, info.dtype, info.shape) for name, info in table.items()]
    with ModelWriter(target, slots, max_shard_size_bytes=max_shard_size_bytes) as writer:
        for info in table.values():
            writer.copy(info)
    return {name: value for file in target.glob("*.safetensors") for name, value in load_file(file).items()}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in TENSORS.items()
    )


def test_tensors_are_read_as_they_were_saved(folder: Path) -> None:
    table = read_table(folder)
    assert {name: info.shape for name, info in table.items()} == {n: tuple(t.shape) for n, t in TENSORS.items()}
    assert (read_tensor(table["a"]) == TENSORS["a"].numpy()).all()
    assert (read_tensor(table["b"]) == TENSORS["b"].view(torch.uint16).numpy()).all()
    assert (read_rows(table["a"], 1, 2) == TENSORS["a"].numpy()[1:3]).all()


def test_a_copied_folder_is_read_by_safetensors(folder: Path, tmp_path: Path) -> None:
    assert same(copy_folder(folder, tmp_path / "copy", 1 << 30))
    assert (tmp_path / "copy" / SINGLE).is_file()
    assert not (tmp_path / "copy" / INDEX).exists()


def test_several_shards_carry_an_index(folder: Path, tmp_path: Path) -> None:
    assert same(copy_folder(folder, tmp_path / "copy", 60))
    files = sorted(file.name for file in (tmp_path / "copy").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-0000{len(files)}.safetensors"
    assert len(files) > 1
    assert same(copy_folder(tmp_path / "copy", tmp_path / "again", 1 << 30))


def test_no_shard_is_larger_than_asked_unless_one_tensor_is(folder: Path, tmp_path: Path) -> None:
    copy_folder(folder, tmp_path / "copy", 60)
    for file in (tmp_path / "copy").glob("*.safetensors"):
        table = read_header(file)
        assert sum(info.bytes for info in table.values()) <= 60 or len(table) == 1


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP])
def test_copies_go_by_hand_where_the_kernel_refuses(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert same(copy_folder(folder, tmp_path / "copy", 60))


def test_a_full_disk_is_not_taken_for_a_refusal(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="no space"):
        copy_folder(folder, tmp_path / "copy", 60)


def test_rows_written_in_any_order_land_in_place(tmp_path: Path) -> None:
    values = np.arange(40, dtype=np.float32).reshape(10, 4)
    with ModelWriter(tmp_path, [("x", "F32", (10, 4))], max_shard_size_bytes=1 << 20) as writer:
        writer.write_rows("x", 6, values[6:])
        writer.write_rows("x", 0, values[:6])
    assert (load_file(tmp_path / SINGLE)["x"].numpy() == values).all()


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no model\.safetensors"):
        read_table(tmp_path)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{not json", b"", "not JSON"),
        (b"[]", b"", "not a JSON object"),
        ({"x": {"dtype": "F32", "shape": [2]}}, b"", "malformed"),
        ({"x": ENTRY | {"shape": [-2]}}, b"\0" * 8, "malformed"),
        ({"x": ENTRY | {"data_offsets": [8, 0]}}, b"\0" * 8, "malformed"),
        ({"x": ENTRY | {"dtype": "Q9"}}, b"\0" * 8, "does not know"),
        ({"x": ENTRY | {"shape": [3]}}, b"\0" * 8, "needs 12"),
        ({"x": ENTRY, "y": ENTRY}, b"\0" * 8, "does not begin where"),
        ({"x": ENTRY, "y": ENTRY | {"data_offsets": [12, 20]}}, b"\0" * 20, "does not begin where"),
        ({"x": ENTRY}, b"\0" * 4, "cut short"),
        ({"x": ENTRY}, b"\0" * 12, "cut short"),
    ],
)
def test_a_broken_header_names_the_file(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    file = write_raw(tmp_path / SINGLE, header, data)
    with pytest.raises(UserError, match=message) as raised:
        read_table(tmp_path)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\1\0", struct.pack("<Q", 1 << 62) + b"{}"])
def test_a_file_without_a_whole_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(UserError, match="broken"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"x": "../x.safetensors"}, "not a file beside it"),
        ({"x": "gone.safetensors"}, "missing"),
        ({"x": SINGLE, "y": SINGLE}, "first y"),
        (None, "weight_map"),
    ],
)
def test_a_broken_index_is_refused(tmp_path: Path, weight_map: Any, message: str) -> None:
    write_raw(tmp_path / SINGLE, {"x": ENTRY}, b"\0" * 8)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message):
        read_table(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(folder: Path) -> None:
    info = read_table(folder)["a"]
    os.truncate(folder / SINGLE, info.offset + 4)
    with pytest.raises(StageError, match="ends inside a"):
        read_tensor(info)
