"""The steps of a plan after training: merge, export, verify, publish and serve."""

from __future__ import annotations

import typing
from typing import Any, Literal

from tunerun.config import overrides
from tunerun.config.checks import size_bytes
from tunerun.config.credentials import secret_variables
from tunerun.config.data_sources import data_sources
from tunerun.config.schema import ADAPTER_METHODS, PUBLISHED, EngineChoice, Published, RunConfig
from tunerun.plan.placement import Placement
from tunerun.plan.steps import (
    ExportStep,
    MergeStep,
    PublishStep,
    Quantisation,
    ServeStep,
    Step,
    VerifyStep,
    quantisation_of,
)
from tunerun.servers import GGUF_ENGINES

ExportFolder = Literal["bnb4", "gptq", "awq", "fp8"]
EXPORT_FOLDERS: tuple[ExportFolder, ...] = typing.get_args(ExportFolder)


def trains_adapter(config: RunConfig) -> bool:
    """Says whether training makes an adapter."""
    return "train" in config.stages and config.method.kind in ADAPTER_METHODS


def trains_weights(config: RunConfig) -> bool:
    """Says whether training makes a whole model."""
    return "train" in config.stages and config.method.kind not in ADAPTER_METHODS


def steps(config: RunConfig, placement: Placement, gpu_bytes: tuple[int, ...] = ()) -> list[Step]:
    """Returns the steps after training and evaluation.

    Args:
        config: Of the run.
        placement: Of stages of one process.
        gpu_bytes: Memory of each visible GPU.
    """
    assert config.name is not None
    found: list[Step] = []
    folder = adapter(config)
    merges = "merge" in config.stages and folder is not None
    merged = merges or trains_weights(config)
    if merges:
        assert folder is not None
        shard = size_bytes(config.export.max_shard_size)
        template = config.model.chat_template
        found.append(
            MergeStep(
                adapter=folder,
                chat_template=template,
                max_shard_size_bytes=shard,
                quantisation=base_quantisation(config),
            )
        )
    if "export" in config.stages:
        found.append(_export_step(config, folder, merged=merged))
    if "verify" in config.stages and config.verify.level != "off":
        engines = _verified_engines(config, merged=merged, adapted=folder is not None)
        found.append(
            VerifyStep(
                level=config.verify.level,
                adapter=folder if merges or "export" in config.stages else None,
                merged=merged,
                gguf_types=config.export.gguf.types if "export" in config.stages else (),
                gguf_adapter="export" in config.stages and config.export.gguf.adapter,
                folders=_folders(config) if "export" in config.stages else (),
                chat=is_chat(config),
                chat_template=config.model.chat_template,
                prompts=config.eval.prompts,
                placement=placement,
                seed=config.seed,
                quantisation=base_quantisation(config),
                engines=engines,
                python=config.env.serve.python,
                serve_keys={engine: keys for engine in engines if (keys := _serve_keys(config, engine))},
                bounds=config.verify.bounds,
            )
        )
    if "publish" in config.stages:
        found.append(_publish_step(config))
    if "serve" in config.stages:
        python = config.env.serve.python
        found.append(ServeStep(serve=config.serve, placement=placement, python=python, gpu_bytes=gpu_bytes))
    return found


def _verified_engines(config: RunConfig, *, merged: bool, adapted: bool) -> tuple[EngineChoice, ...]:
    """Returns the engines that the run is served by in verification: the chosen or cheapest, or all at hand."""
    files = "export" in config.stages and bool(config.export.gguf.types)
    folders = {"transformers": merged or adapted, "vllm": merged or adapted, "lmdeploy": merged}
    serving = {**dict.fromkeys(GGUF_ENGINES, files), **folders}
    usual: list[EngineChoice] = ["llamacpp", "transformers"]
    # A server of its own takes a minute to start, and settings that only who serves it knows.
    if config.serve.engine in usual or config.verify.level == "full":
        usual.insert(0, config.serve.engine)
    if config.env.serve.python is not None:
        usual.append("vllm")
    found = tuple(engine for engine in dict.fromkeys(usual) if serving.get(engine))
    return found if config.verify.level == "full" else found[:1]


def _serve_keys(config: RunConfig, engine: EngineChoice) -> tuple[str, ...]:
    """Returns what the serve stage starts an engine with, as arguments of `tunerun serve`.

    Address, key and limits are left out: they decide who is answered, not what.
    """
    serve = config.serve
    values: dict[str, Any] = {"context": serve.context}
    # What is said to a server is said to the chosen one.
    if engine == ("vllm" if serve.engine == "auto" else serve.engine):
        values |= {"gpus": serve.gpus, "extra_args": serve.extra_args or None}
    return tuple(f"serve.{key}={overrides.spelled(value)}" for key, value in values.items() if value is not None)


def unused_bounds(config: RunConfig) -> list[str]:
    """Returns the forms that bounds were set for, of a run that is verified, and that it does not export."""
    if "verify" not in config.stages or config.verify.level == "off":
        return []
    exported = {*config.export.gguf.types, *_folders(config)} if "export" in config.stages else set()
    return [form for form in config.verify.bounds if form not in exported]


def _export_step(config: RunConfig, folder: str | None, *, merged: bool) -> ExportStep:
    assert config.name is not None
    return ExportStep(
        name=config.name,
        merged=merged,
        gguf=config.export.gguf,
        chat_template=None if merged else config.model.chat_template,
        adapter=folder,
        quantisation=base_quantisation(config),
        system=_served_system(config),
        bnb4=config.export.bnb4 if config.export.bnb4.write else None,
        gptq=config.export.gptq if config.export.gptq.write else None,
        awq=config.export.awq if config.export.awq.write else None,
        fp8=config.export.fp8 if config.export.fp8.write else None,
        python=config.env.export.python,
        max_shard_size_bytes=size_bytes(config.export.max_shard_size),
    )


def made(config: RunConfig) -> set[Published]:
    """Returns what the stages of a run make that can be published."""
    found: set[Published] = {"adapter"} if trains_adapter(config) else set()
    if trains_weights(config) or ("merge" in config.stages and adapter(config) is not None):
        found.add("merged")
    if "export" in config.stages:
        found |= {"gguf"} if config.export.gguf.types or config.export.gguf.adapter else set()
        found |= set(_folders(config))
    return found


def _publish_step(config: RunConfig) -> PublishStep:
    assert config.name is not None
    # A merged model holds its adapter.
    there = made(config)
    there -= {"adapter"} if "merged" in there else set()
    chosen = config.publish.artifacts or tuple(kind for kind in PUBLISHED if kind in there)
    return PublishStep(
        publish=config.publish, name=config.name, artifacts=chosen, secret_variables=secret_variables(config)
    )


def _folders(config: RunConfig) -> tuple[ExportFolder, ...]:
    export = config.export
    written: dict[ExportFolder, bool] = {
        "bnb4": export.bnb4.write,
        "gptq": export.gptq.write,
        "awq": export.awq.write,
        "fp8": export.fp8.write,
    }
    return tuple(name for name in EXPORT_FOLDERS if written[name])


def base_quantisation(config: RunConfig) -> Quantisation | None:
    """Returns what the base goes through before the adapter is added, in evaluation, merge and verification alike."""
    return None if config.export.merge_base == "full_precision" else quantisation_of(config.method)


def _served_system(config: RunConfig) -> str | None:
    """Returns the system prompt that all sources of the data were given, unless the user names another one."""
    if config.export.system is not None:
        return config.export.system or None
    prompts = {source.system for source in data_sources(config.data)} if "data" in config.stages else set()
    return (prompts.pop() or None) if len(prompts) == 1 else None


def adapter(config: RunConfig) -> str | None:
    """Returns the adapter's folder in the run directory, or an existing adapter's; None without one."""
    if trains_adapter(config):
        return "adapter"
    return None if "train" in config.stages else config.model.adapter


def is_chat(config: RunConfig) -> bool:
    """Says whether the model is used through a chat template."""
    return config.objective.kind != "pretrain"
