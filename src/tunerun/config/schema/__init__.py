"""Every key a user can set: its type, default, unit and meaning, and nowhere else.

One flat frozen dataclass for each section. The string below a field is its documentation: `conf/README.md` and error
messages are made from it. A key that only some kinds of its section use names them with `used_by`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tunerun.config.schema.answer import AnswerConfig
from tunerun.config.schema.data import DataConfig, SourceConfig
from tunerun.config.schema.kinds import (
    ADAM_OPTIMIZERS,
    ADAPTER_METHODS,
    ALL_LINEAR,
    BITSANDBYTES_OPTIMIZERS,
    DATA_PARTS,
    PAGED_OPTIMIZERS,
    PUBLISHED,
    DataFormat,
    EngineChoice,
    GgufType,
    MethodKind,
    ObjectiveKind,
    Optimizer,
    Published,
    QuantisedForm,
    Stage,
    used_by,
)
from tunerun.config.schema.machine import (
    ClusterConfig,
    EnvConfig,
    ExportEnvConfig,
    HardwareConfig,
    ServeEnvConfig,
)
from tunerun.config.schema.model import ModelConfig, ShapeConfig
from tunerun.config.schema.results import (
    AwqConfig,
    Bnb4Config,
    BoundConfig,
    EvalConfig,
    ExportConfig,
    Fp8Config,
    GgufConfig,
    GptqConfig,
    PublishConfig,
    ServeConfig,
    TrackConfig,
    VerifyConfig,
)
from tunerun.config.schema.runs import LockConfig, OptunaConfig, ParameterConfig, SweepConfig
from tunerun.config.schema.training import MethodConfig, ObjectiveConfig, TrainConfig

__all__ = [
    "ADAM_OPTIMIZERS",
    "ADAPTER_METHODS",
    "ALL_LINEAR",
    "BITSANDBYTES_OPTIMIZERS",
    "DATA_PARTS",
    "PAGED_OPTIMIZERS",
    "PUBLISHED",
    "AnswerConfig",
    "AwqConfig",
    "Bnb4Config",
    "BoundConfig",
    "ClusterConfig",
    "DataConfig",
    "DataFormat",
    "EngineChoice",
    "EnvConfig",
    "EvalConfig",
    "ExportConfig",
    "ExportEnvConfig",
    "Fp8Config",
    "GgufConfig",
    "GgufType",
    "GptqConfig",
    "HardwareConfig",
    "LockConfig",
    "MethodConfig",
    "MethodKind",
    "ModelConfig",
    "ObjectiveConfig",
    "ObjectiveKind",
    "Optimizer",
    "OptunaConfig",
    "ParameterConfig",
    "PublishConfig",
    "Published",
    "QuantisedForm",
    "RunConfig",
    "ServeConfig",
    "ServeEnvConfig",
    "ShapeConfig",
    "SourceConfig",
    "Stage",
    "SweepConfig",
    "TrackConfig",
    "TrainConfig",
    "VerifyConfig",
    "used_by",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """One run, from data to a served model."""

    name: str | None = None
    """Names the run directory and exported files; null takes the recipe's name."""
    run_dir: str | None = None
    """Folder of the run; null makes outputs/<name>/<run id>."""
    seed: int = 42
    """Seeds shuffling, dropout, adapter initialisation and sampling."""
    stages: tuple[Stage, ...] = ("data", "train", "eval", "merge", "export", "verify")
    """What to run, in this order."""
    model: ModelConfig = ModelConfig()
    """Which weights to start from."""
    answer: AnswerConfig = AnswerConfig()
    """A teacher that answers prompts."""
    data: DataConfig = DataConfig()
    """Which rows to train on."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """What is learned."""
    method: MethodConfig = MethodConfig()
    """Which weights move."""
    train: TrainConfig = TrainConfig()
    """How the weights move."""
    hardware: HardwareConfig = HardwareConfig()
    """What to compute on."""
    cluster: ClusterConfig = ClusterConfig()
    """Where processes are placed."""
    eval: EvalConfig = EvalConfig()
    """What is measured."""
    export: ExportConfig = ExportConfig()
    """What is written for deployment."""
    verify: VerifyConfig = VerifyConfig()
    """Proof of the export."""
    publish: PublishConfig = PublishConfig()
    """Where the model goes."""
    serve: ServeConfig = ServeConfig()
    """The endpoint."""
    track: TrackConfig = TrackConfig()
    """Trackers."""
    sweep: SweepConfig = SweepConfig()
    """Many runs."""
    env: EnvConfig = EnvConfig()
    """This machine."""
    lock: LockConfig = LockConfig()
    """What a run has to find as it was."""
