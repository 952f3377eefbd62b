"""The merge stage in a run directory."""

from __future__ import annotations

from pathlib import Path

from tests.export.models import build_model
from tests.merge.test_merge import build_adapter
from tunerun import artifacts
from tunerun.base_model import BaseModel, write_base
from tunerun.merge.stage import run
from tunerun.plan.steps import MergeStep


def test_the_run_gets_a_merged_folder_with_the_named_template(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "run"
    base.mkdir()
    out.mkdir()
    build_adapter(out / "adapter", build_model(base, num_hidden_layers=1), r=4, target_modules=["v_proj"])
    write_base(out, BaseModel(folder=base, path=str(base), revision=None, sha256="0" * 64))
    step = MergeStep(adapter="adapter", chat_template="chatml", max_shard_size_bytes=1 << 30)
    (made,) = run(step, out)
    assert (made.kind, made.path) == ("model", artifacts.MERGED)
    assert "<|im_start|>" in (out / "merged" / "chat_template.jinja").read_text()
    assert (out / "merged" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
