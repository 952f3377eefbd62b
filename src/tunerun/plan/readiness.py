"""What stands between a plan and running it here: errors when running, warnings in `tunerun plan`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
from pathlib import Path

from tunerun import artifacts, hashes, paths, servers
from tunerun import machine as machines
from tunerun.config.data_sources import data_paths
from tunerun.config.schema import BITSANDBYTES_OPTIMIZERS, PAGED_OPTIMIZERS, RunConfig
from tunerun.errors import Problem
from tunerun.formats.architectures import GGUF_ARCHITECTURES, TRAINED_ARCHITECTURES
from tunerun.machine import Machine
from tunerun.plan import delivery, nodes, tasks
from tunerun.plan.delivery import trains_adapter
from tunerun.plan.plan import Plan
from tunerun.plan.render import gigabytes
from tunerun.plan.steps import PublishStep
from tunerun.strategies import ZERO_STAGES

# What this version trains and starts; the schema and the estimates already know more.
TRAINED_OBJECTIVES = ("sft", "pretrain", "dpo", "orpo", "simpo", "kto", "reward", "distill")

_MUON_SINCE = (2, 9)


def problems(config: RunConfig, plan: Plan, machine: Machine | None) -> list[Problem]:
    """Finds everything that keeps this machine or this version from running a plan.

    Args:
        config: What the plan was made from.
        plan: What is to be run.
        machine: Where it is to be run, or None for nodes of a cluster, which nothing is known of here.
    """
    return [
        *_not_built(config),
        *_foreign_export(config),
        *_files(config),
        *_rows(config, plan),
        *(_nodes(config) if machine is None else _gpus(config, plan, machine)),
        *_extras(config),
        *_key(config),
        *(tasks.problems(config.eval) if "eval" in config.stages else ()),
        *_locked(config),
        *_publishing(config, plan),
        *_quantiser(config),
        *_server(config, plan),
        *_optimizer(config, plan),
        *(_run_dir(plan) or _disk(plan)),
    ]


def _not_built(config: RunConfig) -> list[Problem]:
    rows = [
        ("objective.kind", config.objective.kind, TRAINED_OBJECTIVES, "train" in config.stages),
    ]
    found = [
        Problem(where=key, what=f"this version plans {value} but cannot run it.", fix=f"It runs: {', '.join(known)}.")
        for key, value, known, needed in rows
        if needed and value not in known
    ]
    architecture = config.model.shape.architecture
    computing = ", ".join(stage for stage in config.stages if stage in ("train", "eval"))
    if architecture is not None and architecture not in TRAINED_ARCHITECTURES and computing:
        what = f"{computing}: {architecture} is not among the architectures that are trained."
        fix = f"Those are: {', '.join(TRAINED_ARCHITECTURES)}. Others can be merged, exported, verified and served."
        found.append(Problem(where="model.path", what=what, fix=fix))
    return found


def _foreign_export(config: RunConfig) -> list[Problem]:
    """Finds what cannot be had of models that llama.cpp's own converter writes."""
    architecture, gguf = config.model.shape.architecture, config.export.gguf
    if "export" not in config.stages or architecture is None or architecture in GGUF_ARCHITECTURES:
        return []
    found = []
    adapted = config.model.adapter is not None or trains_adapter(config)
    if gguf.types and adapted and "merge" not in config.stages:
        what = f"llama.cpp's own converter writes GGUF for {architecture}, and it needs the merged model."
        found.append(Problem(where="stages", what=what, fix="Add merge to the stages."))
    if gguf.types and gguf.imatrix:
        what = f"no importance matrix is measured for {architecture}, whose GGUF llama.cpp's own converter writes."
        found.append(Problem(where="export.gguf.imatrix", what=what, fix="Set export.gguf.imatrix=false."))
    if gguf.adapter:
        what = f"adapters of {architecture} are not written as GGUF."
        fix = "Set export.gguf.adapter=false and export the merged model."
        found.append(Problem(where="export.gguf.adapter", what=what, fix=fix))
    return found


def _files(config: RunConfig) -> list[Problem]:
    rows = [("model.path", config.model.path), ("model.adapter", config.model.adapter)]
    rows.append(("objective.teacher", config.objective.teacher))
    rows.append(("export.gguf.llama_cpp", config.export.gguf.llama_cpp))
    rows += data_paths(config.data)
    rows += [("answer.prompts", path) for path in config.answer.prompts]
    found = []
    for key, value in rows:
        if value is None or not paths.looks_local(value):
            continue
        path = Path(paths.resolve_asset(value))
        if not path.exists():
            found.append(Problem(where=key, what=f"there is no file or folder {value}.", fix=_instead_of(value, path)))
        elif not path.is_file() and not path.is_dir():
            # To hash a pipe would wait for ever.
            found.append(Problem(where=key, what=f"{value} is neither a file nor a folder."))
        elif key == "model.adapter" and not artifacts.is_adapter(path):
            what = f"there is no {artifacts.ADAPTER_CONFIG} in {value}."
            fix = "Name an adapter's folder, or a run or checkpoint of one; a whole model is a model.path."
            found.append(Problem(where=key, what=what, fix=fix))
    return found


def _rows(config: RunConfig, plan: Plan) -> list[Problem]:
    if "eval" not in config.stages or "data" in config.stages or (Path(plan.run_dir) / artifacts.DATA).is_dir():
        return []
    what = f"eval measures rows that the data stage prepares, and {plan.run_dir} has none."
    return [Problem(where="stages", what=what, fix="Add data to the stages.")]


def _instead_of(value: str, path: Path) -> str:
    if value.startswith("~/"):
        return f'The shell leaves ~ as it is after an equals sign: write "$HOME"{value[1:]}.'
    if "://" in value and not value.startswith(paths.ASSET_SCHEME):
        return "Files are read from this machine or a hub: download it."
    return paths.nearest(path)


def _publishing(config: RunConfig, plan: Plan) -> list[Problem]:
    publish, found = config.publish, []
    if "publish" not in config.stages or publish.dry_run:
        return []
    if publish.repo is not None and publish.hub == "hf" and not _has_hub_token():
        what = "there is no token for the hub."
        fix = "Set HF_TOKEN to a token that may write, or run: hf auth login"
        found.append(Problem(where="publish.repo", what=what, fix=fix))
    if publish.repo is not None and publish.hub == "modelscope" and not _has_modelscope_token():
        what = "there is no token for ModelScope."
        fix = "Set MODELSCOPE_API_TOKEN to a token that may write, or run: modelscope login"
        found.append(Problem(where="publish.repo", what=what, fix=fix))
    if publish.repo is not None:
        found += _published(config, plan)
    if publish.ollama is not None and shutil.which("ollama") is None:
        what = "there is no `ollama` on the PATH."
        found.append(Problem(where="publish.ollama", what=what, fix="Install Ollama, or set publish.ollama=null."))
    return found


def _models_there(plan: Plan) -> set[str]:
    """Returns the kinds of models that an earlier start of the run made."""
    return {kind for kind, folder in artifacts.MODEL_FOLDERS.items() if (Path(plan.run_dir) / folder).is_dir()}


def _published(config: RunConfig, plan: Plan) -> list[Problem]:
    """Finds what is to be published and neither lies in the run directory nor is made by a stage."""
    chosen = next(step.artifacts for step in plan.steps if isinstance(step, PublishStep))
    made = delivery.made(config)
    there = _models_there(plan)
    fix = "Add the stages that make it, or leave it out."
    problems = [
        Problem(where="publish.artifacts", what=f"{kind} is made by no stage of the run.", fix=fix)
        for kind in chosen
        if kind not in {*made, *there}
    ]
    if not chosen and not there:
        fix = "Add stages that make a model, such as train and merge."
        problems.append(Problem(where="publish.repo", what="there is nothing to publish.", fix=fix))
    return problems


def _quantiser(config: RunConfig) -> list[Problem]:
    export = config.export
    needed = ["gptqmodel"] if export.gptq.write else []
    needed += ["llmcompressor"] if export.awq.write or export.fp8.write else []
    if "export" not in config.stages or not needed:
        return []
    python = config.env.export.python
    if python is None:
        fix = "Install it into an environment of its own, and set env.export.python to that one's interpreter."
        missing = [name for name in needed if not is_installed(name)]
        return [Problem(where="env.export.python", what=f"{name} is not installed.", fix=fix) for name in missing]
    if shutil.which(python) is None:
        return [Problem(where="env.export.python", what=f"there is no interpreter {python}.")]
    return []


def _server(config: RunConfig, plan: Plan) -> list[Problem]:
    if "serve" not in config.stages:
        return []
    problem = servers.missing(config.serve.engine, config.env.serve.python)
    found = [] if problem is None else [problem]
    if not delivery.made(config) and not _models_there(plan):
        fix = "Add train, merge or export; a model that is there is served by `tunerun serve`."
        found.append(Problem(where="stages", what="serve has no model: no stage before it makes one.", fix=fix))
    return found


def _has_hub_token() -> bool:
    """Says whether huggingface_hub would find a token (its constants.py: HF_TOKEN_PATH)."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    return bool(os.environ.get("HF_TOKEN")) or Path(os.environ.get("HF_TOKEN_PATH") or home / "token").is_file()


def _has_modelscope_token() -> bool:
    """Says whether modelscope_hub would find a token (its config.py): in a variable, or in the cookies of a login."""
    home = Path(os.environ.get("MODELSCOPE_HOME") or Path.home() / ".modelscope").expanduser()
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    return (home / "credentials" / "cookies").is_file() if token is None else bool(token)


def _key(config: RunConfig) -> list[Problem]:
    name = config.answer.api_key_env
    if "answer" not in config.stages or name is None:
        return []
    key = os.environ.get(name, "")
    if key and key.isascii() and key == key.strip():
        return []
    what = f"the environment variable {name} holds no key of ASCII characters."
    return [Problem(where="answer.api_key_env", what=what, fix=f"export {name}=...")]


def _locked(config: RunConfig) -> list[Problem]:
    """Finds what is not as the lock has it; the model's weights are hashed when they are loaded."""
    found = []
    for name, version in config.lock.packages.items():
        here = _version(name)
        if here != version:
            what = f"{name} {version} is asked for, and {here or 'none'} is installed."
            fix = f"Install it (pip install {name}=={version}), or unlock: '~lock.packages.{name}'"
            found.append(Problem(where=f"lock.packages.{name}", what=what, fix=fix))
    for path, digest in config.lock.data_sha256.items():
        found += _changed("lock.data_sha256", path, digest)
    for path, digest in config.lock.files_sha256.items():
        found += _changed("lock.files_sha256", path, digest)
    return found


def _changed(key: str, path: str, digest: str) -> list[Problem]:
    target = Path(path).expanduser()
    # What is missing is said of the key that names it.
    here = hashes.path_sha256(target, "files") if target.exists() else digest
    if here == digest:
        return []
    what = f"{path} is not what it was (sha256 {here[:12]}.., the lock has {digest[:12]}..)."
    fix = f"Get the file that the recipe was locked with, or unlock: '~{key}'"
    return [Problem(where=key, what=what, fix=fix)]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus(config: RunConfig, plan: Plan, machine: Machine) -> list[Problem]:
    chosen = config.hardware.devices
    if len(chosen) > len(machine.gpus):
        what = f"{len(machine.gpus)} of the GPUs {', '.join(chosen)} are here."
        return [Problem(where="hardware.devices", what=what, fix="nvidia-smi lists them; [] takes all.")]
    if plan.train is None or plan.train.placement.device != "cuda":
        return []
    needed, here = plan.train.placement.processes, len(machine.gpus)
    if needed <= here:
        return []
    what = f"{needed} GPU{'s are' if needed > 1 else ' is'} planned on each node, and this machine has {here}."
    return [Problem(where="hardware", what=what, fix="Choose hardware=cpu, or run it where the GPUs are.")]


def _nodes(config: RunConfig) -> list[Problem]:
    """Finds what the plan would take from this machine, which is not where it runs."""
    hardware, problems = config.hardware, []
    if hardware.device == "auto" and hardware.gpu is None:
        what = "what the nodes compute on cannot be told from here."
        fix = "Name their GPU (hardware.gpu=h100-80g), or set hardware.device=cpu."
        problems.append(Problem(where="hardware.gpu", what=what, fix=fix))
    if config.cluster.kind == "skypilot" and hardware.device != "cpu" and hardware.gpu not in nodes.SKYPILOT_GPUS:
        what = f"SkyPilot has no name for {hardware.gpu or 'a GPU that is not named'}."
        problems = [Problem(where="hardware.gpu", what=what, fix=f"Choose {', '.join(nodes.SKYPILOT_GPUS)}.")]
    if hardware.strategy != "single" and hardware.processes is None:
        what = "how many processes a node can run cannot be told from here."
        fix = "Set hardware.processes to the number of GPUs of a node."
        problems.append(Problem(where="hardware.processes", what=what, fix=fix))
    return problems


def _extras(config: RunConfig) -> list[Problem]:
    trains = "train" in config.stages
    rows = [
        ("export.gguf.types", "gguf", "gguf", "export" in config.stages and bool(config.export.gguf.types)),
        ("export.gguf.adapter", "gguf", "gguf", "export" in config.stages and config.export.gguf.adapter),
        ("export.gguf.types", "llama_cpp", "gguf", "export" in config.stages and _quantises(config)),
        ("serve.engine", "llama_cpp", "gguf", "serve" in config.stages and config.serve.engine == "llamacpp"),
        ("method.kind", "bitsandbytes", "quant", _quantises_base(config)),
        ("train.optimizer", "bitsandbytes", "quant", config.train.optimizer in BITSANDBYTES_OPTIMIZERS and trains),
        ("hardware.strategy", "deepspeed", "deepspeed", trains and config.hardware.strategy in ZERO_STAGES),
        ("eval.lm_eval", tasks.PACKAGE, "lm-eval", bool(config.eval.lm_eval) and "eval" in config.stages),
        ("track.tensorboard", "tensorboard", "tensorboard", config.track.tensorboard and trains),
        ("track.wandb", "wandb", "wandb", config.track.wandb and trains),
        ("track.trackio", "trackio", "trackio", config.track.trackio and trains),
        ("track.mlflow", "mlflow", "mlflow", config.track.mlflow and trains),
        ("track.swanlab", "swanlab", "swanlab", config.track.swanlab and trains),
        ("data.hub", "modelscope", "hub", config.data.hub == "modelscope" and _asks_hub(config)),
        ("publish.hub", "modelscope_hub", "hub", config.publish.hub == "modelscope" and _uploads(config)),
        ("model.hub", "modelscope", "hub", config.model.hub == "modelscope" and _is_on_hub(config.model.path)),
    ]
    return [
        Problem(where=key, what=f"{module} is not installed.", fix=f"Install it: pip install 'tunerun[{extra}]'")
        for key, module, extra, needed in rows
        if needed and not is_installed(module)
    ]


def _optimizer(config: RunConfig, plan: Plan) -> list[Problem]:
    if plan.train is None:
        return []
    kind, problems = config.train.optimizer, []
    if kind in PAGED_OPTIMIZERS and plan.train.placement.device != "cuda":
        fix = f"Choose {kind.removeprefix('paged_')}."
        problems.append(Problem(where="train.optimizer", what=f"{kind} pages to and from a GPU's memory.", fix=fix))
    torch = _version("torch")
    if kind == "muon" and torch is not None and tuple(map(int, torch.split(".")[:2])) < _MUON_SINCE:
        what = f"torch {torch} has no Muon."
        problems.append(Problem(where="train.optimizer", what=what, fix="Install torch 2.9 or later."))
    return problems


def is_installed(module: str) -> bool:
    """Says whether a module can be imported; a folder of that name, such as wandb's `./wandb`, is none."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def _quantises_base(config: RunConfig) -> bool:
    again = () if config.export.merge_base == "full_precision" else ("eval", "verify")
    return config.method.kind == "qlora" and any(stage in config.stages for stage in ("train", *again))


def _quantises(config: RunConfig) -> bool:
    return any(kind not in ("f32", "f16", "bf16") for kind in config.export.gguf.types)


def _asks_hub(config: RunConfig) -> bool:
    """Says whether a data set has to be downloaded."""
    return "data" in config.stages and not all(
        paths.looks_local(path) or Path(path).exists() for _, path in data_paths(config.data)
    )


def _uploads(config: RunConfig) -> bool:
    return "publish" in config.stages and config.publish.repo is not None and not config.publish.dry_run


def _is_on_hub(path: str | None) -> bool:
    return path is not None and not Path(paths.resolve_asset(path)).is_dir()


def _run_dir(plan: Plan) -> list[Problem]:
    folder = Path(plan.run_dir)
    while not folder.exists():
        folder = folder.parent
    if folder.is_dir() and os.access(folder, os.W_OK):
        return []
    what = f"{folder} cannot be written." if folder.is_dir() else f"{folder} is a file."
    return [Problem(where="run_dir", what=what, fix="Name another folder.")]


def _disk(plan: Plan) -> list[Problem]:
    if plan.estimate is None:
        return []
    needed, free = plan.estimate.disk.run_bytes, machines.free_bytes(Path(plan.run_dir))
    if needed <= free:
        return []
    what = f"the run writes about {gigabytes(needed)}, and {gigabytes(free)} are free."
    return [Problem(where="run_dir", what=what, fix="Free some space, or set run_dir to another disk.")]
