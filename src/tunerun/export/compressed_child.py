"""Quantises a model by llm-compressor; run by that environment's interpreter, which need not have tunerun."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(job_file: str) -> None:
    """Does the job that a JSON file describes."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto")
    if not job["rows"]:
        oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=job["scheme"], ignore=["lm_head"]))
    else:
        if not torch.accelerator.is_available():
            from llmcompressor.pipelines.cache import IntermediatesCache

            # llm-compressor 0.14 pins inputs for a GPU even where there is none.
            IntermediatesCache.pin_memory = lambda *_, **__: None
        oneshot(
            model=model,
            dataset=_dataset(job["rows"]),
            recipe=_awq(job["group_size"]),
            num_calibration_samples=len(job["rows"]),
            max_seq_length=max(map(len, job["rows"])),
        )
    model.save_pretrained(job["out"], save_compressed=True)


def _awq(group_size: int) -> list[Any]:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    weights = QuantizationArgs(num_bits=4, group_size=group_size, strategy="group", symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    return [AWQModifier(), QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])]


def _dataset(rows: list[list[int]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows])


if __name__ == "__main__":
    main(sys.argv[1])
