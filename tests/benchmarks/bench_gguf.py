"""Makes a quantised GGUF from a base and an adapter with tunerun, and with peft and llama.cpp, side by side.

Run: `python tests/benchmarks/bench_gguf.py [--llama-cpp FOLDER] [--layers 15] [--repeats 3] [--type q4_k_m]`, FOLDER
being the `vendor/llama.cpp` of llama-cpp-python's source package, which is downloaded when it is not given. Builds a
random bfloat16 Qwen2 and an adapter of rank 16 on all linear layers. Each side runs in fresh processes, turn about and
with the disk at rest: peft merges, convert_hf_to_gguf.py writes bfloat16 and llama_model_quantize reads it again;
tunerun reads base and adapter once, flushes what it wrote to disk and hashes it, which the others do not. A second
comparison is the base alone to bfloat16, with the converter. Prints medians of wall time (start of the first process to
the end of the last), the highest peak of resident memory, the bytes left or passed through scratch files, and whether
every tensor is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.benchmarks.bench_merge import PEFT  # noqa: E402
from tests.export import upstream  # noqa: E402
from tests.export.compare import differing_tensors  # noqa: E402

QUANTISE = """
import ctypes, os, sys, llama_cpp
from tunerun.export.mix import FILE_TYPES
source, target, kind = sys.argv[1:]
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype, parameters.nthread = FILE_TYPES[kind].number, os.cpu_count()
assert llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)) == 0
"""
TUNERUN = """
import sys
from pathlib import Path
from tunerun.base_model import BaseModel, write_base
from tunerun.config.schema import GgufConfig
from tunerun.export.stage import run
from tunerun.plan.steps import ExportStep
base, adapter, out, kind = sys.argv[1:]
write_base(Path(out), BaseModel(folder=Path(base), path=base, revision=None, sha256="0" * 64))
gguf = GgufConfig(types=(kind,))
adapter = None if adapter == "none" else adapter
run(ExportStep(name="demo", merged=False, gguf=gguf, chat_template=None, adapter=adapter), Path(out))
"""


def measure(commands: list[list[str]]) -> tuple[float, float, float]:
    """Runs commands one after another; returns wall and CPU seconds, and the highest peak of resident memory in MiB."""
    path = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONPATH": path}
    # What the run before it left to be written is not its business.
    os.sync()
    started, cpu, peak = time.perf_counter(), 0.0, 0.0
    for command in commands:
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen([sys.executable, *command], env=environment, stdout=said, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            assert isinstance(usage, resource.struct_rusage)
            if status != 0:
                said.seek(0)
                sys.exit(said.read().decode()[-3000:])
        cpu += usage.ru_utime + usage.ru_stime
        peak = max(peak, usage.ru_maxrss / 1024)
    return time.perf_counter() - started, cpu, peak


def compare(name: str, sides: dict[str, list[list[str]]], repeats: int) -> None:
    """Runs the sides turn about and prints one JSON line for each."""
    runs: dict[str, list[tuple[float, float, float]]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, commands in sides.items():
            runs[side].append(measure(commands))
    for side, results in runs.items():
        wall, cpu, peak = (statistics.median(column) for column in zip(*results, strict=True))
        figures = {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "rss_mib": round(peak)}
        print(json.dumps({"what": name, "side": side, **figures}), flush=True)


def build_all(folder: Path, layers: int) -> None:
    """Saves the base model, its tokenizer and the adapter."""
    from tests.benchmarks.bench_merge import build
    from tests.export.models import build_tokenizer

    build(folder, layers)
    build_tokenizer(folder / "base")


def main() -> None:
    """Builds, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--type", default="q4_k_m")
    options = parser.parse_args()
    source = options.llama_cpp or upstream.find_source()
    if source is None:
        sys.exit("the source package of llama-cpp-python cannot be downloaded; name its vendor/llama.cpp")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: Linux counts what a process held before it became another.
        with ProcessPoolExecutor(1, get_context("spawn")) as builder:
            builder.submit(build_all, folder, options.layers).result()
        base, adapter, peft = folder / "base", folder / "adapter", folder / "peft"
        print(json.dumps({"model_megabytes": round((base / "model.safetensors").stat().st_size / 1e6)}))
        peft.mkdir()
        for file in base.glob("tokenizer*"):
            shutil.copy(file, peft)
        convert = [str(ROOT / "tests/export/upstream.py"), str(source), "qwen2"]
        merged, theirs = folder / "merged.gguf", folder / f"peft-{options.type}.gguf"
        outputs = {kind: folder / kind for kind in ("fused", "plain")}
        for output in outputs.values():
            output.mkdir()
        compare(
            f"base + adapter -> {options.type}",
            {
                "tunerun": [["-c", TUNERUN, str(base), str(adapter), str(outputs["fused"]), options.type]],
                "peft, converter, llama_model_quantize": [
                    ["-c", PEFT, str(base), str(adapter), str(peft)],
                    [*convert, str(peft), "--outfile", str(merged), "--outtype", "bf16"],
                    ["-c", QUANTISE, str(merged), str(theirs), options.type],
                ],
            },
            options.repeats,
        )
        plain = folder / "base-bf16.gguf"
        compare(
            "base -> bf16",
            {
                "tunerun": [["-c", TUNERUN, str(base), "none", str(outputs["plain"]), "bf16"]],
                "converter": [[*convert, str(base), "--outfile", str(plain), "--outtype", "bf16"]],
            },
            options.repeats,
        )
        # Last: what this process holds would count for the ones that it starts.
        scratch = sum(file.stat().st_size for file in [merged, *peft.glob("*.safetensors")])
        ours = outputs["fused"] / "export" / f"demo-{options.type}.gguf"
        print(
            json.dumps(
                {"scratch_megabytes": round(scratch / 1e6), "differing_tensors": differing_tensors(ours, theirs)}
            )
        )
        same = differing_tensors(outputs["plain"] / "export" / "demo-bf16.gguf", plain)
        print(json.dumps({"differing_tensors": same}))


if __name__ == "__main__":
    main()
