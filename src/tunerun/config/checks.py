"""Rules between keys, each a pure function that returns the problems it finds.

A rule is about the config alone. What depends on the machine (GPUs, free memory, installed extras) is in
`plan/readiness.py`, so that a cluster's run can be planned on a laptop.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable

from tunerun.config import clusters, measuring, processes, ranges, teacher
from tunerun.config.data_sources import data_paths, data_sources, holds_out
from tunerun.config.schema import ADAPTER_METHODS, DATA_PARTS, ExportConfig, RunConfig, Stage
from tunerun.errors import Problem
from tunerun.network import is_loopback
from tunerun.servers import SERVERS

PACKABLE = ("sft", "pretrain", "distill")
REWARD_METHODS = ("full", "lora", "dora", "rslora", "lora_plus")
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]?)B", re.IGNORECASE)
_REPO = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_OLLAMA_NAME = r"[A-Za-z0-9][\w.-]*(/[\w.-]+)*(:[\w.-]+)?"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_STAGES = typing.get_args(Stage)

Rule = Callable[[RunConfig], list[Problem]]

# What llama.cpp writes only with an importance matrix.
MEASURED_TYPES = ("iq3_xs", "iq3_xxs", "q2_k_s", "iq2_m", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")


def check(config: RunConfig) -> list[Problem]:
    """Applies every rule."""
    return [problem for rule in RULES for problem in rule(config)]


def size_bytes(text: str) -> int:
    """Turns `2GB` into bytes; units are powers of 1000, as in transformers.

    Raises:
        ValueError: The text is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    return int(float(match["number"]) * _UNITS[match["unit"].upper()])


def _stages(config: RunConfig) -> list[Problem]:
    if not config.stages:
        return [Problem(where="stages", what="is empty.", fix=f"Name some of: {', '.join(_STAGES)}.")]
    order = [_STAGES.index(stage) for stage in config.stages]
    if order != sorted(set(order)):
        wanted = ",".join(stage for stage in _STAGES if stage in config.stages)
        return [Problem(where="stages", what="stages run once, in a fixed order.", fix=f"Write stages=[{wanted}].")]
    return []


def _needs(config: RunConfig) -> list[Problem]:
    """What a stage cannot do without."""
    problems = []
    stages = config.stages
    # Only a teacher elsewhere is asked.
    if not config.model.path and set(stages) != {"answer"}:
        fix = "Choose model=NAME or set model.path to a folder or a hub id."
        problems.append(Problem(where="model.path", what="no model is chosen.", fix=fix))
    given = any(path for key, path in data_paths(config.data) if key != "data.eval_path")
    if "data" in stages and "answer" not in stages and not given:
        fix = "Set data.path to a file, a folder or a hub id, choose data=NAME, or add answer to the stages."
        problems.append(Problem(where="data.path", what="no data is chosen.", fix=fix))
    if "train" in stages and "data" not in stages:
        problems.append(Problem(where="stages", what="train needs the data stage.", fix="Add data to the stages."))
    trained = "train" in stages or config.model.adapter is not None
    if "merge" in stages and not trained:
        fix = "Add train to the stages, or set model.adapter to an existing adapter."
        problems.append(Problem(where="stages", what="merge has no adapter to merge.", fix=fix))
    if "export" in stages and not _exports(config.export):
        fix = "Choose export=gguf, bnb4, gptq, awq or fp8, or leave export out of the stages."
        problems.append(Problem(where="export.gguf.types", what="export has nothing to write.", fix=fix))
    adapted = config.method.kind in ADAPTER_METHODS if "train" in stages else trained
    if "export" in stages and config.export.gguf.adapter and not adapted:
        fix = "Set export.gguf.adapter=false, or train or name an adapter."
        problems.append(Problem(where="export.gguf.adapter", what="there is no adapter to write.", fix=fix))
    measured = sorted(set(config.export.gguf.types) & set(MEASURED_TYPES))
    if "export" in stages and measured and not config.export.gguf.imatrix:
        what = f"{', '.join(measured)} need to know which weights matter."
        problems.append(Problem(where="export.gguf.types", what=what, fix="Set export.gguf.imatrix=true."))
    if "export" in stages and config.export.gguf.imatrix and "data" not in stages:
        fix = "Add data to the stages, or set export.gguf.imatrix=false."
        problems.append(Problem(where="export.gguf.imatrix", what="there are no data to measure on.", fix=fix))
    if "export" in stages:
        problems.extend(_quantisers(config, unmerged=adapted and "merge" not in stages))
    if "verify" in stages and not {"merge", "export", "train"} & set(stages):
        fix = "Add merge or export, or leave verify out."
        problems.append(Problem(where="stages", what="verify has nothing to compare.", fix=fix))
    return problems


def _exports(export: ExportConfig) -> bool:
    folders = (export.bnb4, export.gptq, export.awq, export.fp8)
    return bool(export.gguf.types) or export.gguf.adapter or any(folder.write for folder in folders)


def _quantisers(config: RunConfig, *, unmerged: bool) -> list[Problem]:
    export, problems = config.export, []
    for key, written, calibrated in (
        ("gptq", export.gptq.write, True),
        ("awq", export.awq.write, True),
        ("fp8", export.fp8.write, False),
    ):
        where = f"export.{key}.write"
        if written and unmerged:
            what = "its library reads a whole model, and none is merged."
            problems.append(Problem(where=where, what=what, fix="Add merge to the stages."))
        if written and calibrated and "data" not in config.stages:
            fix = f"Add data to the stages, or set {where}=false."
            problems.append(Problem(where=where, what="there are no data to calibrate on.", fix=fix))
    return problems


def _objective(config: RunConfig) -> list[Problem]:
    objective = config.objective
    problems = []
    if objective.kind == "distill" and objective.teacher is None and "train" in config.stages:
        fix = "Set objective.teacher to the folder or hub id of a larger model with the same tokenizer."
        problems.append(Problem(where="objective.teacher", what="no teacher is chosen.", fix=fix))
    if objective.kind == "dpo" and objective.label_smoothing and objective.loss != "sigmoid":
        what = f"the loss {objective.loss} has no label smoothing."
        fix = "Set objective.label_smoothing=0 or objective.loss=sigmoid."
        problems.append(Problem(where="objective.label_smoothing", what=what, fix=fix))
    if objective.kind == "reward" and "train" in config.stages:
        problems.extend(_reward(config))
    return problems


def _reward(config: RunConfig) -> list[Problem]:
    """A reward model gives a score instead of text."""
    problems = []
    if config.method.kind not in REWARD_METHODS:
        what = f"{config.method.kind} cannot train the head that gives the score."
        problems.append(Problem(where="method.kind", what=what, fix=f"Choose {', '.join(REWARD_METHODS)}."))
    if config.model.adapter is not None or config.model.init == "random":
        key = "model.init" if config.model.adapter is None else "model.adapter"
        what = "a reward model starts from a pretrained model alone."
        problems.append(Problem(where=key, what=what, fix="Unset it."))
    if "serve" in config.stages or "publish" in config.stages:
        fix = "Leave serve and publish out of the stages."
        problems.append(Problem(where="stages", what="a reward model gives scores and cannot be served.", fix=fix))
    return problems


def _packing(config: RunConfig) -> list[Problem]:
    if not config.data.packing:
        return []
    if config.data.max_length is None:
        what = "null says nothing about how long packed rows are to be."
        return [Problem(where="data.max_length", what=what, fix="Set data.max_length=2048, or data.packing=false.")]
    if config.objective.kind in PACKABLE:
        return []
    what = f"objective {config.objective.kind} compares whole answers and cannot pack rows."
    return [Problem(where="data.packing", what=what, fix="Set data.packing=false.")]


def _length(config: RunConfig) -> list[Problem]:
    context = config.model.shape.context
    if context is None or config.data.max_length is None or config.data.max_length <= context:
        return []
    what = f"{config.data.max_length} tokens are more than the model's context of {context}."
    return [Problem(where="data.max_length", what=what, fix=f"Set data.max_length={context} or less.")]


def _data(config: RunConfig) -> list[Problem]:
    problems = []
    data = config.data
    chosen = [key for key in ("eval_path", "eval_fraction", "eval_rows") if getattr(data, key)]
    if len(chosen) > 1:
        what = "evaluation rows are a share of the data, a number of rows, or files of their own."
        fix = f"Set only one of {' and '.join(f'data.{key}' for key in chosen)}."
        problems.append(Problem(where=f"data.{chosen[-1]}", what=what, fix=fix))
    if data.path and data.sources:
        fix = "Set data.path=[] to use the sources, or '~data.sources' to use the path."
        problems.append(Problem(where="data.sources", what="data.path is set too.", fix=fix))
    for name, source in data.sources.items():
        where = f"data.sources.{name}"
        if not source.path:
            problems.append(Problem(where=f"{where}.path", what="is missing.", fix="Name a file, folder or hub id."))
        if source.weight <= 0:
            what = f"{source.weight} is out of range: it must be > 0."
            problems.append(Problem(where=f"{where}.weight", what=what, fix=f"Remove it by ~{where} to leave it out."))
        if not ranges.positive(source.max_rows):
            what = f"{source.max_rows} is out of range: it must be >= 1."
            problems.append(Problem(where=f"{where}.max_rows", what=what))
    if config.train.eval_steps is not None and not holds_out(data):
        fix = "Set data.eval_fraction, data.eval_rows or data.eval_path, or leave it null."
        problems.append(Problem(where="train.eval_steps", what="no rows are held out to measure.", fix=fix))
    named = {"data": data.columns} | {f"data.sources.{name}": source.columns for name, source in data.sources.items()}
    for where, columns in named.items():
        for part in columns:
            if part not in DATA_PARTS:
                what = "columns maps a part of a row to the name of its column."
                fix = f"Parts: {', '.join(DATA_PARTS)}."
                problems.append(Problem(where=f"{where}.columns.{part}", what=what, fix=fix))
    if data.streaming and data.hub == "modelscope":
        what = "data sets of ModelScope are downloaded first."
        problems.append(Problem(where="data.streaming", what=what, fix="Set data.streaming=false."))
    if data.system_override and all(source.system is None for source in data_sources(data)):
        what = "there is no system prompt to replace the rows' own."
        problems.append(Problem(where="data.system_override", what=what, fix="Set data.system to a text."))
    return problems


def _answers(config: RunConfig) -> list[Problem]:
    """What does not go with objectives that compare or judge whole answers."""
    data, kind = config.data, config.objective.kind
    if kind in PACKABLE:
        return []
    what = f"objective {kind} learns from one answer to a prompt as a whole."
    rows = [
        ("data.train_on", data.train_on != "assistant", "Set data.train_on=assistant."),
        ("data.multi_turn", data.multi_turn != "whole", "Set data.multi_turn=whole."),
        ("data.too_long", data.too_long == "split", "Set data.too_long=truncate_prompt or drop."),
    ]
    return [Problem(where=key, what=what, fix=fix) for key, wrong, fix in rows if wrong]


def _method(config: RunConfig) -> list[Problem]:
    problems = []
    delivers = config.model.adapter is not None and "train" not in config.stages
    if config.model.init == "random" and config.method.kind != "full":
        what = "an adapter on random weights learns nothing of use."
        problems.append(Problem(where="model.init", what=what, fix="Choose method=full."))
    if config.model.init == "random" and config.model.adapter is not None:
        problems.append(Problem(where="model.adapter", what="an adapter does not fit random weights.", fix="Unset it."))
    if config.method.kind == "pissa" and config.model.adapter is not None and "train" in config.stages:
        what = "pissa starts from the weights' own components and cannot go on with an adapter."
        problems.append(Problem(where="model.adapter", what=what, fix="Choose method=lora, which can."))
    if config.method.kind == "freeze" and not config.method.layers and not config.method.patterns:
        problems.append(Problem(where="method.layers", what="nothing would be trained.", fix="Set it to 1 or more."))
    # Of another adapter, its folder may tell more.
    return problems if delivers else [*problems, *merge_base(config)]


def merge_base(config: RunConfig) -> list[Problem]:
    """Checks that the base to merge into is one that the adapter was trained on."""
    if config.export.merge_base != "dequantised" or config.method.kind == "qlora":
        return []
    what = "only the base of qlora is quantised in training."
    return [Problem(where="export.merge_base", what=what, fix="Remove it, or choose method=qlora.")]


def _sizes(config: RunConfig) -> list[Problem]:
    problems = []
    for key, text in (
        ("export.max_shard_size", config.export.max_shard_size),
        ("cluster.memory", config.cluster.memory),
    ):
        if text is None:
            continue
        try:
            size = size_bytes(text)
        except ValueError:
            problems.append(Problem(where=key, what=f"{text!r} is not a size.", fix="Write 2GB or 500MB."))
        else:
            if size < 10**6:
                problems.append(Problem(where=key, what="is below 1MB.", fix="Write 500MB, say."))
    return problems


def _names(config: RunConfig) -> list[Problem]:
    problems = []
    if config.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.name):
        what = f"{config.name!r} cannot name a folder and files."
        problems.append(Problem(where="name", what=what, fix="Use a-z, 0-9, dot, dash and underscore."))
    if config.run_dir == "":
        problems.append(Problem(where="run_dir", what="is empty.", fix="Name a folder, or write null for a new one."))
    return problems


def _serve(config: RunConfig) -> list[Problem]:
    serve, problems = config.serve, _serve_origins(config)
    if not is_loopback(serve.host) and not serve.api_key_env:
        what = f"{serve.host} can be reached from other machines, and no key is asked for."
        fix = "Set serve.api_key_env to the name of a variable that holds a key."
        problems.append(Problem(where="serve.host", what=what, fix=fix))
    server = SERVERS.get("vllm" if serve.engine == "auto" else serve.engine)
    for key in serve.extra_args:
        if server is not None and key.lstrip("-").replace("-", "_") in server.decided:
            fix = "Leave it out; serve.context, serve.gpus and the other keys of serve decide it."
            problems.append(Problem(where=f"serve.extra_args.{key}", what="is decided by tunerun.", fix=fix))
        elif key.startswith("-"):
            fix = f"Write {key.lstrip('-').replace('-', '_')}."
            problems.append(Problem(where=f"serve.extra_args.{key}", what="is written without dashes.", fix=fix))
    return problems


def _serve_origins(config: RunConfig) -> list[Problem]:
    return [
        Problem(
            where="serve.cors_origins",
            what=f"{origin!r} is not a web origin.",
            fix="Write scheme and host, such as https://chat.example or http://localhost:3000.",
        )
        for origin in config.serve.cors_origins
        if not re.fullmatch(r"https?://[^/\s*?#@]+", origin)
    ]


def _publish(config: RunConfig) -> list[Problem]:
    publish, problems = config.publish, []
    if "publish" in config.stages and publish.repo is None and publish.ollama is None:
        fix = "Set publish.repo=OWNER/NAME, or publish.ollama=NAME."
        problems.append(Problem(where="publish.repo", what="nowhere to publish to is chosen.", fix=fix))
    if publish.repo is not None and not re.fullmatch(_REPO, publish.repo):
        what = f"{publish.repo!r} is not a repository."
        problems.append(Problem(where="publish.repo", what=what, fix="Write OWNER/NAME."))
    if publish.ollama is not None and not re.fullmatch(_OLLAMA_NAME, publish.ollama):
        what = f"{publish.ollama!r} cannot name a model of Ollama."
        problems.append(Problem(where="publish.ollama", what=what, fix="Write NAME, NAME:TAG or OWNER/NAME:TAG."))
    parts = (publish.folder or "x").split("/")
    if any(part in ("", ".", "..") for part in parts):
        what = f"{publish.folder!r} is not a folder of a repository."
        problems.append(Problem(where="publish.folder", what=what, fix="Write a path such as models/small."))
    return problems


def _sweep(config: RunConfig) -> list[Problem]:
    late = [name for name in config.sweep.metric if name in ("gguf_bytes", "quantisation_kl")]
    problems: list[Problem] = []
    if not config.sweep.metric:
        problems.append(Problem(where="sweep.metric", what="names nothing to rank by.", fix="Set eval_loss."))
    if config.sweep.finish_best and late:
        what = f"the trials are ranked by {late[0]}, which only the best one would have."
        fix = "Set it to false, or rank by sweep.metric=eval_loss."
        problems.append(Problem(where="sweep.finish_best", what=what, fix=fix))
    return problems


RULES: tuple[Rule, ...] = (
    ranges.check,
    teacher.check,
    _stages,
    _needs,
    _objective,
    _packing,
    _length,
    _data,
    _answers,
    processes.number,
    processes.sharing,
    clusters.check,
    processes.micro_batch,
    _method,
    measuring.selection,
    measuring.generation,
    _sizes,
    _names,
    _serve,
    _publish,
    _sweep,
)
