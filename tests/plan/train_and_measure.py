"""Trains a random model for two accumulated steps with the parts of the train stage; prints what it kept and needed.

Run as a process of its own by test_memory.py: peak memory is a fact of a process.
Arguments: config.json as text, tokens in a row, rows, method, `recompute` or `keep` for activations, and
what to measure: `kept` by the layers or the `peak`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tunerun import worker

# As the worker loads the stage.
with worker.leaving_out(worker.SELDOM_NEEDED):
    from tunerun.config.schema import MethodConfig
    from tunerun.models import adapters, load
    from tunerun.models.attention import SEGMENTS
    from tunerun.models.batch import MicroBatch
    from tunerun.models.loss import token_loss
    from tunerun.train.metrics import peak_memory_bytes
    from tunerun.train.network import freeze


def kept_by_layers(network: Any, batch: MicroBatch) -> int:
    """Bytes that a forward pass through the decoder keeps for the backward pass, the weights apart."""
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network.get_decoder()(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            segment_lengths=batch.segment_lengths,
            use_cache=False,
        )
    return sum(kept.values())


def main(config: dict[str, Any], row_tokens: int, rows: int, method: str, recompute: bool, measure: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        network = load.random_model(Path(folder), seed=0, device="cpu", attention=SEGMENTS)
    if method == "freeze":
        freeze(network, MethodConfig(kind="freeze", layers=1))
    elif method != "full":
        chosen: Any = method
        network = adapters.add_adapter(network, MethodConfig(kind=chosen, rank=16), seed=0).get_base_model()
    network.train()
    if recompute:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    moving = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(moving, fused=True)
    tokens = rows * row_tokens
    ids = torch.randint(0, config["vocab_size"], (1, tokens + 1))
    batch = MicroBatch(
        input_ids=ids[:, :-1],
        position_ids=torch.arange(row_tokens).repeat(rows)[None],
        segment_lengths=(row_tokens,) * rows,
        segment_bounds=torch.arange(0, tokens + 1, row_tokens, dtype=torch.int32),
        predicting=torch.arange(tokens),
        targets=ids[0, 1:],
        target_segments=torch.arange(rows).repeat_interleave(row_tokens),
        samples=tuple(range(rows)),
    )
    loaded_bytes = peak_memory_bytes("cpu")
    kept_bytes = kept_by_layers(network, batch) if measure == "kept" else 0
    for _ in range(2):
        for _ in range(2):
            token_loss(network, batch).backward()
        optimiser.step()
        optimiser.zero_grad()
    facts = {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "trainable": sum(parameter.numel() for parameter in moving),
        "kept_bytes": kept_bytes,
        "loaded_bytes": loaded_bytes,
        "peak_bytes": peak_memory_bytes("cpu"),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(
        json.loads(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        sys.argv[4],
        sys.argv[5] == "recompute",
        sys.argv[6],
    )
