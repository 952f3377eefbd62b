"""Files that llama.cpp's C++ must not see: a message before it does, whatever the engine."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tunerun.errors import UserError

pytest.importorskip("llama_cpp")

MODEL_TENSOR, ADAPTER_TENSOR = "blk.1.attn_q.weight", "blk.0.attn_q.weight.lora_a"


def misplaced(data: bytes, tensor: str, offset: int) -> bytes:
    """Lets a tensor begin elsewhere: behind its name stand the number of axes, the axes, the type and the offset."""
    name = data.index(struct.pack("<Q", len(tensor)) + tensor.encode()) + 8 + len(tensor)
    (axes,) = struct.unpack_from("<I", data, name)
    place = name + 4 + 8 * axes + 4
    return data[:place] + struct.pack("<Q", offset) + data[place + 8 :]


FAULTS: dict[str, tuple[Callable[[bytes, str], bytes], str]] = {
    "far": (lambda data, tensor: misplaced(data, tensor, 1 << 40), "{tensor} lies outside of it"),
    "overflow": (lambda data, tensor: misplaced(data, tensor, (1 << 64) - 32), "{tensor} lies outside of it"),
    "between": (lambda data, tensor: misplaced(data, tensor, 3), "{tensor} lies outside of it"),
    "cut": (lambda data, tensor: data[:-100], "cut short"),
    "cut in the header": (lambda data, tensor: data[:300], "the file is broken"),
    "another format": (lambda data, tensor: b"GGML" + data[4:], "does not begin with GGUF"),
    "empty": (lambda data, tensor: b"", "bytes early"),
}


@pytest.fixture
def model(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(next((run_dir / "export").glob("*.gguf")), tmp_path / "model.gguf"))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "adapter.gguf", "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for part in "ab":
        writer.add_tensor(f"{ADAPTER_TENSOR[:-1]}{part}", np.zeros((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "adapter.gguf"


def load(model: Path, adapter: Path | None = None) -> None:
    from tunerun.serve.engines.llama_context import LlamaContext

    context = LlamaContext(model, context_tokens=64, threads=1, device="cpu")
    if adapter is not None:
        context.load_adapter("x", adapter)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_is_named_before_llama_cpp_sees_it(
    model: Path, adapter: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunerun.serve.engines import llama_context

    damage, message = FAULTS[fault]
    load(model)
    adapter.write_bytes(damage(adapter.read_bytes(), ADAPTER_TENSOR))
    with pytest.raises(UserError, match=f"adapter.gguf.*{re.escape(message.format(tensor=ADAPTER_TENSOR))}"):
        load(model, adapter)
    model.write_bytes(damage(model.read_bytes(), MODEL_TENSOR))
    monkeypatch.setattr(llama_context, "llama_module", None)
    with pytest.raises(UserError, match=f"model.gguf.*{re.escape(message.format(tensor=MODEL_TENSOR))}"):
        load(model)


def test_a_broken_file_ends_a_chat_with_a_message(model: Path) -> None:
    model.write_bytes(misplaced(model.read_bytes(), MODEL_TENSOR, 1 << 40))
    command = [sys.executable, "-m", "tunerun", "chat", str(model)]
    done = subprocess.run(command, input="hello\n", capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert f"{MODEL_TENSOR} lies outside of it" in done.stderr
    assert "Traceback" not in done.stderr
