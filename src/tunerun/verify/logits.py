"""Gates `merge_logits` and `gguf_logits`: each hand-off predicts what the model before it predicts."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tunerun.config.schema import BoundConfig, GgufType
from tunerun.errors import MissingExtra
from tunerun.formats.bitsandbytes import TORCH_NAMES
from tunerun.formats.safetensors import read_table
from tunerun.models import load
from tunerun.plan.steps import Quantisation
from tunerun.verify import gguf_model
from tunerun.verify.gates import Difference, Gate, Reference, compare, logits_of, quantised_bound, quantised_gate

# Float32 sums in another order differ by parts in a million; their effect on a divergence is the square of that.
_FLOAT32_KL_NATS = 1e-8
# Merged weights that lie between two numbers of the format may be rounded either way by two correct mergers.
_ROUNDING_FACTOR = 2.0

# Largest mean divergence from the unquantised model, in nats, by GGUF type: about six times what llama.cpp's own table
# for Llama 3 8B shows (tools/perplexity/README.md), since small models suffer more. f16 and bf16 bound the rounding
# of weights; f32 another order of summation.
_GGUF_KL_NATS: Mapping[GgufType, float] = {
    "f32": 1e-4,
    "f16": 1e-3,
    "bf16": 5e-3,
    "q8_0": 1e-2,
    "q6_k": 4e-2,
    "q5_k_m": 8e-2,
    "q5_k_s": 8e-2,
    "q5_0": 1e-1,
    "q5_1": 1e-1,
    "q4_k_m": 2e-1,
    "q4_k_s": 2.5e-1,
    "q4_0": 3e-1,
    "q4_1": 3e-1,
    "iq4_nl": 2.5e-1,
    "iq4_xs": 2.5e-1,
    "q3_k_l": 5e-1,
    "q3_k_m": 6e-1,
    "q3_k_s": 8e-1,
    "iq3_m": 7e-1,
    "iq3_s": 8e-1,
    "q2_k": 2.0,
    "iq3_xs": 8e-1,
    "iq3_xxs": 1.0,
    "q2_k_s": 2.5,
    "iq2_m": 2.0,
    "iq2_s": 2.5,
    "iq2_xs": 2.5,
    "iq2_xxs": 3.0,
    "iq1_m": 5.0,
    "iq1_s": 6.0,
    # Ternary types are for models that were trained to have ternary weights.
    "tq2_0": 1e-1,
    "tq1_0": 1e-1,
}


def merge_gate(
    base: Path,
    adapter: Path,
    merged: Path,
    texts: Sequence[list[int]],
    device: str,
    quantisation: Quantisation | None = None,
) -> Gate:
    """Compares the adapter on its base with the merged model, both computed in float32.

    The bound is what rounding the exact merge to the format of merged/ does on the same texts, twice: two correct
    mergers may round a weight either way. When the base model itself lies within the bound there is no proof.

    Args:
        base: The base model's folder.
        adapter: The adapter's folder.
        merged: The merged folder.
        texts: Token ids.
        device: `cpu` or `cuda`.
        quantisation: What the base's linear layers went through in training and in merged/.
    """
    from tunerun.models.adapters import load_adapter

    dtype = _stored_dtype(merged)
    network = _open_base(base, device, quantisation)
    adapted = load_adapter(network, adapter, trainable=False)
    wanted = logits_of(adapted, texts)
    with adapted.disable_adapter():
        untuned = compare(texts, wanted, logits_of(adapted, texts))
    exact = adapted.merge_and_unload()
    for parameter in exact.parameters():
        parameter.data = parameter.data.to(dtype).float()
    rounding = compare(texts, wanted, logits_of(exact, texts))
    del network, adapted, exact
    gc.collect()
    measured = compare(texts, wanted, logits_of(load.load_model(merged, dtype=torch.float32, device=device), texts))
    gc.collect()
    return _merge_verdict(measured, rounding, untuned)


def _merge_verdict(measured: Difference, rounding: Difference, untuned: Difference) -> Gate:
    limit = _ROUNDING_FACTOR * rounding.mean_kl_nats + _FLOAT32_KL_NATS
    found = {**asdict(measured), "rounding_kl_nats": rounding.mean_kl_nats, "base_kl_nats": untuned.mean_kl_nats}
    bound = {"mean_kl_nats": limit}
    if not measured.mean_kl_nats <= limit:
        reason = (
            "merged/ does not predict what the adapter on its base predicts. Run the merge stage again; if it stays, "
            "the adapter has modules that the merge does not know."
        )
        return Gate(name="merge_logits", measured=found, bound=bound, verdict="fail", reason=reason)
    if untuned.mean_kl_nats <= limit:
        reason = "the adapter changes the base model less than rounding does, so that a lost adapter would not show"
        return Gate(name="merge_logits", measured=found, bound=bound, verdict="not_proved", reason=reason)
    return Gate(name="merge_logits", measured=found, bound=bound, verdict="pass", reason="")


def open_merged(base: Path, adapter: Path, device: str, quantisation: Quantisation | None) -> Any:
    """Loads a base model with an adapter merged in memory and rounded to the base's type, in float32.

    Args:
        base: The base model's folder.
        adapter: The adapter's folder.
        device: `cpu` or `cuda`.
        quantisation: What the base's linear layers went through before.
    """
    from tunerun.models.adapters import load_adapter

    network, dtype = _open_base(base, device, quantisation), _stored_dtype(base)
    merged = load_adapter(network, adapter, trainable=False).merge_and_unload()
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return merged


def _stored_dtype(folder: Path) -> torch.dtype:
    """Returns the number format of a folder's largest tensor, whatever config.json says."""
    largest = max(read_table(folder).values(), key=lambda info: info.bytes)
    found: torch.dtype = getattr(torch, TORCH_NAMES[largest.dtype])
    return found


def _open_base(base: Path, device: str, quantisation: Quantisation | None) -> Any:
    if quantisation is None:
        return load.load_model(base, dtype=torch.float32, device=device)
    # On the CPU, where bitsandbytes rounds as the merge does.
    return load.load_dequantised(base, quantisation=quantisation, dtype=torch.float32, device="cpu").to(device)


def gguf_bound(kind: GgufType, wanted: BoundConfig) -> dict[str, float]:
    """Returns what a GGUF type is held to."""
    return quantised_bound(_GGUF_KL_NATS[kind], wanted)


def gguf_gate(kind: GgufType, path: Path, reference: Reference, threads: int, wanted: BoundConfig) -> Gate:
    """Compares a GGUF file, run by llama.cpp, with the model it was made from.

    Args:
        kind: Its llama.cpp type, such as `q4_k_m`.
        path: The file.
        reference: The model it was made from.
        threads: CPU threads.
        wanted: Bounds that the user set.
    """
    name, bound = f"gguf_logits:{path.name}", gguf_bound(kind, wanted)
    try:
        model = gguf_model.open_gguf(
            path, vocabulary_only=False, context=max(map(len, reference.texts)), threads=threads
        )
    except MissingExtra as error:
        return Gate(name=name, measured={}, bound=bound, verdict="not_proved", reason=str(error))
    found, wished = gguf_model.logits(model, reference.texts), reference.logits
    if found[0].shape[1] != wished[0].shape[1]:
        measured: dict[str, Any] = {"vocabulary": found[0].shape[1]}
        reason = f"its vocabulary is not the model's ({wished[0].shape[1]}). Export again."
        return Gate(name=name, measured=measured, bound=bound, verdict="fail", reason=reason)
    difference = compare(reference.texts, wished, found, most_tie_nats=bound["near_tie_nats"])
    return quantised_gate(name, kind, difference, bound, "Take a finer type (q8_0, f16), export again")
