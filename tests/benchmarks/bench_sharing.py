"""Host memory of two ranks while they share a model out: weights left in their files, and read whole first.

Run: `python tests/benchmarks/bench_sharing.py [--strategy fsdp2] [--precision bf16] [--ranks 2] [--resumed]`.

The model is a random Qwen2 of 189 million parameters stored in bf16, trained in full; `--resumed` goes on from a
checkpoint of it, whose weights are float32 that bf16 cannot hold. Memory is what belongs to a process alone (RssAnon),
above what it had when all ranks were connected: files that are mapped are the system's, which has them once for all
ranks and may drop them. `loaded` is read when the network is there, `peak` until the engine is made. Both ways have to
come to the same weights, whose hash is shown. From a checkpoint there is one way: its files have the format trained in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
SIZES = {
    "vocab_size": 8192,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
WAYS = ("files", "whole")


def build(folder: Path) -> int:
    """Writes the model, and a checkpoint's weights into model/; returns its number of parameters."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    model.save_pretrained(folder / "model")
    model.to(torch.bfloat16).save_pretrained(folder)
    return int(model.num_parameters())


def own_mib() -> float:
    """Returns the memory of this process that no file stands for."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@contextmanager
def peak() -> Iterator[list[float]]:
    """Yields a list whose only number is the most memory within the block so far."""
    most, ended = [own_mib()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            most[0] = max(most[0], own_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def rank_main(folder: Path, strategy: Any, precision: str, way: str, start: str) -> None:
    """One rank: shares the model out and prints what that took."""
    if strategy != "fsdp2":
        import deepspeed  # noqa: F401
    from tests.train.engines.group import placed
    from tests.train.runs import FULL, train_step
    from tunerun.base_model import BaseModel
    from tunerun.train import network, stage
    from tunerun.train.checkpoint import Checkpoint, Progressed
    from tunerun.train.engines import make_engine
    from tunerun.train.ranks import connected

    step = placed(train_step(FULL, precision=precision), strategy, int(os.environ["WORLD_SIZE"]))
    read = step if way == "files" else replace(step, placement=replace(step.placement, strategy="ddp"))
    base = BaseModel(folder=folder, path="bench", revision=None, sha256="0")
    saved = Checkpoint(folder=folder, progress=Progressed(), identity={}, files=())
    with connected(step.placement) as ranks:
        before, began = own_mib(), time.monotonic()
        with peak() as most:
            built = network.build(read, base, saved if start == "checkpoint" else None)
            loaded = own_mib() - before
            engine = make_engine(stage._parts(step, built, ranks))
        seconds = time.monotonic() - began
        weights, digest = engine.weights(trainable=True), hashlib.sha256()
        for name in sorted(weights):
            digest.update(weights[name].numpy().tobytes())
        found = {"loaded": loaded, "peak": most[0] - before, "seconds": seconds}
        print(json.dumps({**found, "digest": digest.hexdigest() if ranks.is_first else None}))
        ranks.wait()


def measure(folder: Path, chosen: argparse.Namespace, way: str) -> list[dict[str, Any]]:
    """Runs all ranks; returns what each printed."""
    from tests.train.engines.group import environments

    start = "checkpoint" if chosen.resumed else "base"
    command = [sys.executable, __file__, "--rank", str(folder), chosen.strategy, chosen.precision, way, start]
    ranks = [
        subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for env in environments(chosen.ranks)
    ]
    said = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert {rank.returncode for rank in ranks} == {0}, said
    return [json.loads(text.splitlines()[-1]) for text in said]


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        rank_main(Path(sys.argv[2]), *sys.argv[3:7])
        return
    options = argparse.ArgumentParser()
    options.add_argument("--strategy", default="fsdp2", choices=["fsdp2", "zero3"])
    options.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    options.add_argument("--ranks", type=int, default=2)
    options.add_argument("--resumed", action="store_true", help="go on from a checkpoint")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        whole_mib = 4 * build(Path(name)) / 2**20
        start = "a checkpoint" if chosen.resumed else "the base"
        print(f"{chosen.strategy}, {chosen.precision}, {chosen.ranks} ranks, from {start}: all weights in float32")
        print(f"  are {whole_mib:.0f} MiB, the part of a rank {whole_mib / chosen.ranks:.0f} MiB")
        digests = set()
        for way in WAYS[: 1 if chosen.resumed else 2]:
            found = measure(Path(name), chosen, way)
            digests.add(found[0]["digest"])
            loaded, most, seconds = (max(rank[key] for rank in found) for key in ("loaded", "peak", "seconds"))
            print(f"  {way:<6} loaded {loaded:5.0f} MiB a rank, peak {most:5.0f} MiB, {seconds:.1f} s")
    print(f"  weights {' and '.join(str(digest)[:16] for digest in digests)}")
    assert len(digests) == 1, "both ways have to come to the same weights"


if __name__ == "__main__":
    main()
