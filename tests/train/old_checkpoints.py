"""Checkpoints as earlier versions wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from tunerun import artifacts
from tunerun.formats import checkpoints


def to_schema_2(folder: Path) -> None:
    """Rewrites a checkpoint of a LoRA as schema 2 had it: the average apart, and the moving weights in adapter/."""
    adapter, moving = folder / "adapter" / artifacts.ADAPTER_WEIGHTS, load_file(folder / checkpoints.MOVING)
    parameters = {"base_model.model." + name.replace(".default.", "."): name for name in moving}
    average = {parameters[name]: weight for name, weight in load_file(adapter).items()}
    save_file({name: moving[parameter] for name, parameter in parameters.items()}, adapter, metadata={"format": "pt"})
    (folder / checkpoints.MOVING).unlink()
    as_schema_2(folder, average)


def as_schema_2(folder: Path, average: Mapping[str, Tensor]) -> None:
    """Adds an average to a checkpoint that holds the moving weights, and the manifest of schema 2."""
    save_file(dict(average), folder / "average.safetensors")
    manifest = json.loads((folder / checkpoints.MANIFEST).read_text())
    progress = manifest["progress"]
    if "best_value" in progress:
        progress["best_loss"] = progress.pop("best_value")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    files = {name: artifacts.sha256(folder / name) for name in sorted(names - {checkpoints.MANIFEST})}
    old = {"schema": 2, "progress": progress, "identity": manifest["identity"], "files": files}
    artifacts.write_json(folder / checkpoints.MANIFEST, {**old, "sha256": checkpoints._digest(old)})
