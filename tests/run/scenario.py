"""A small run with stand-in stages, for this folder's tests and the programs that they start."""

import sys
from pathlib import Path

from tunerun.config.schema import DataConfig, GgufConfig, ModelConfig, RunConfig, TrainConfig
from tunerun.launch import command
from tunerun.launch.command import Launch
from tunerun.plan.placement import Placement
from tunerun.plan.plan import Plan
from tunerun.plan.steps import (
    DataStep,
    ExportStep,
    MergeStep,
    ModelStep,
    TrainStep,
)
from tunerun.run import runner

HERE = Path(__file__).parent
SHORT = ("data", "train")
FULL = ("data", "train", "merge", "export")


def use_stand_ins(replace=setattr):
    """Makes the runner start stand-in stages; `replace` is `monkeypatch.setattr` in tests."""
    real = command.command

    def stand_in(step, run_dir, **settings):
        launch = real(step, run_dir, **settings)
        return Launch(
            argv=(sys.executable, str(HERE / "drive_worker.py"), *launch.argv[-2:]),
            env=launch.env,
            without=launch.without,
        )

    replace(command, "command", stand_in)


def fill(folder):
    """Puts a model and data for the stand-in stages into a folder."""
    (folder / "model").mkdir(parents=True)
    (folder / "model/model.safetensors").write_text("weights")
    (folder / "rows.txt").write_text("rows")


def config(data, model, **train):
    return RunConfig(
        name="small",
        model=ModelConfig(path=str(model)),
        data=DataConfig(path=(str(data),)),
        train=TrainConfig(**train),
    )


def plan(run_dir, config, stages=SHORT, types=("f16",)):
    steps = {
        "data": DataStep(
            data=config.data, objective=config.objective, chat_template=config.model.chat_template, seed=config.seed
        ),
        "train": TrainStep(
            model=config.model,
            objective=config.objective,
            method=config.method,
            train=config.train,
            eval=config.eval,
            track=config.track,
            name="small",
            placement=Placement(threads=1),
            micro_batch_size=1,
            accumulation_steps=config.train.global_batch_size,
            activation_checkpointing=False,
            max_shard_size_bytes=10**9,
            seed=config.seed,
        ),
        "merge": MergeStep(adapter="adapter", chat_template=config.model.chat_template, max_shard_size_bytes=10**9),
        "export": ExportStep(name="small", merged=True, gguf=GgufConfig(types=types), chat_template=None),
    }
    first = ModelStep(model=config.model, cache_dir=None, weights="train" in stages)
    return Plan(
        name="small",
        run_dir=str(run_dir),
        steps=(first, *(steps[stage] for stage in stages)),
        estimate=None,
        volume=None,
        verification=None,
        notes=(),
        warnings=(),
    )


def execute(run_dir, data, model, allow=frozenset(), stages=SHORT, types=("f16",), **train):
    made = config(data, model, **train)
    return runner.execute(plan(run_dir, made, stages, types), config=made, allow=allow)
