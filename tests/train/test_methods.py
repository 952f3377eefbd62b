"""Every method trains, resumes to the same bits, and writes what others can load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.runs import Killed, kill_before, losses, make_run, train_step
from tunerun.config.schema import MethodConfig
from tunerun.train.stage import run

METHODS = {
    "freeze": MethodConfig(kind="freeze", layers=1, patterns=("model.norm.*",)),
    "rslora": MethodConfig(kind="rslora", rank=4, alpha=8.0, dropout=0.1),
    "dora": MethodConfig(kind="dora", rank=4, alpha=8.0, dropout=0.1),
    "pissa": MethodConfig(kind="pissa", rank=4, alpha=4.0, rank_pattern={"q_proj": 2}, modules_to_save=("norm",)),
    "pissa-exact": MethodConfig(kind="pissa", rank=4, alpha=4.0, pissa_iterations=0),
    "lora_plus": MethodConfig(kind="lora_plus", rank=4, alpha=8.0),
    "qlora": MethodConfig(kind="qlora", rank=4, alpha=8.0, dropout=0.1),
    "qlora-int8": MethodConfig(kind="qlora", rank=4, alpha=8.0, bits=8, target_modules=("q_proj",)),
    "patterns": MethodConfig(rank=4, alpha=8.0, rank_pattern={"down_proj": 6}, alpha_pattern={"layers.0.*v_proj": 3.0}),
    "saved": MethodConfig(rank=4, alpha=8.0, target_modules=("v_proj",), modules_to_save=("embed_tokens",)),
}
PROMPT = torch.arange(5, 45)[None]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_and_resumes_to_the_same_bits(tmp_path: Path, name: str, precision: str) -> None:
    step = train_step(METHODS[name], precision=precision, checkpoint_steps=2, learning_rate=5e-3)
    straight, stopped = (make_run(tmp_path / folder) for folder in ("straight", "stopped"))
    wanted = run(step, straight)[0]
    with kill_before(3), pytest.raises(Killed):
        run(step, stopped)
    assert run(step, stopped)[0] == wanted
    assert losses(stopped) == losses(straight)
    assert losses(straight)[-1][1] < losses(straight)[0][1]
