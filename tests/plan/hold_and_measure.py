"""Trains a random model for a step in the hands of an engine, and prints what torch holds before the second one.

One process of several, by the variables that torchrun sets; run by test_states.py.
Arguments: config.json as text, strategy, method and precision.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile

from tunerun.config.schema import MethodConfig, TrainConfig
from tunerun.models import adapters, load
from tunerun.models.attention import SEGMENTS
from tunerun.models.batch import MicroBatch
from tunerun.models.loss import token_loss
from tunerun.plan.deepspeed import BUCKET_NUMBERS, deepspeed_config
from tunerun.plan.placement import Placement
from tunerun.train import optim
from tunerun.train.engines import Parts, make_engine
from tunerun.train.ranks import connected

_ROW_TOKENS = 32


def network(config: dict[str, Any], method: str, precision: str) -> Any:
    """Makes the model as the train stage would have it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        made = load.random_model(Path(folder), seed=0, device="cpu", attention=SEGMENTS)
    if method == "full":
        return made.train()
    if precision == "bf16":
        made = made.bfloat16()
    chosen: Any = method
    return adapters.add_adapter(made, MethodConfig(kind=chosen, rank=16), seed=0).get_base_model().train()


def batch(vocabulary: int) -> MicroBatch:
    ids = torch.randint(0, vocabulary, (1, _ROW_TOKENS + 1))
    return MicroBatch(
        input_ids=ids[:, :-1],
        position_ids=torch.arange(_ROW_TOKENS)[None],
        segment_lengths=(_ROW_TOKENS,),
        segment_bounds=torch.tensor([0, _ROW_TOKENS], dtype=torch.int32),
        predicting=torch.arange(_ROW_TOKENS),
        targets=ids[0, 1:],
        target_segments=torch.zeros(_ROW_TOKENS, dtype=torch.long),
        samples=(0,),
    )


def allocated_bytes(recorded: Any) -> int:
    """Adds up what this thread allocated and did not free while it was recorded: DDP's own buffers are in C++."""
    events = recorded.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


def tensor_bytes() -> int:
    """Adds up the storages of all tensors: FSDP2 and DeepSpeed free in other threads, which are not recorded."""
    gc.collect()
    storages: dict[int, int] = {}
    for item in gc.get_objects():
        # Asked of the type: some libraries' objects import themselves when they are looked at.
        if issubclass(type(item), torch.Tensor):
            for tensor in (item, item.grad if item.is_leaf else None):
                if tensor is not None:
                    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                    # What gradients travel through is planned apart; when it is freed differs between stages.
                    if local.numel() != BUCKET_NUMBERS:
                        storages[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes()
    return sum(storages.values())


def main(config: dict[str, Any], strategy: Any, method: str, precision: Any) -> None:
    torch.set_num_threads(1)
    world = int(os.environ["WORLD_SIZE"])
    placement = Placement(strategy=strategy, processes=world, precision=precision)
    with connected(placement) as ranks:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            parts = Parts(
                network=network(config, method, precision),
                optimisers=lambda parameters: optim.make_optimisers(
                    parameters, TrainConfig(), embeddings=(), rate_factors={}
                ),
                placement=placement,
                ranks=ranks,
                max_grad_norm=1.0,
                deepspeed=deepspeed_config(placement, max_grad_norm=1.0),
            )
            engine = make_engine(parts)
            rows = batch(config["vocab_size"])
            for last in (False, True):
                engine.learn(lambda module: (token_loss(module, rows), None), last=last)
            engine.move(1e-4)
            engine.learn(lambda module: (token_loss(module, rows), None), last=False)
        held = allocated_bytes(recorded) if strategy in ("single", "ddp") else tensor_bytes()
        print(json.dumps({"held_bytes": held}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), *sys.argv[2:5])
