"""Quantises a model by gptqmodel; run by that environment's interpreter, in which tunerun need not be installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(job_file: str) -> None:
    """Does the job that a JSON file describes."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=job["bits"], group_size=job["group_size"], desc_act=False)
    model = GPTQModel.load(job["model"], config)
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in job["rows"]]
    model.quantize(rows, batch_size=1)
    model.save(job["out"])


if __name__ == "__main__":
    main(sys.argv[1])
