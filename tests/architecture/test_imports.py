"""Imports go one way; what a newcomer may rely on is written here and nowhere else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SRC = ROOT / "src" / "tunerun"
BASE = {
    "errors", "redact", "paths", "artifacts", "progress", "child", "base_model", "network", "servers", "columns",
    "hashes", "fits", "text_metrics", "strategies", "markdown",
}  # fmt: skip
LIBRARY = {"formats", "chat", "models"}
STAGES = {"data", "train", "evaluate", "merge", "export", "verify", "publish", "serve"}
# The shipped model's text and scoring stand beside the library.
BESIDE = {"sprout"}
# What the schema's types and the plan's steps stand on: standard library only.
STEP_TYPES = {"plan.steps", "plan.placement", "plan.step_keys", "config.typed", "config.schema"}

# The control layer, from the bottom: each may import what stands before it.
CONTROL = ["config", "machine", "plan", "launch", "run", "sweep", "commands", "cli"]
# The stages' and the library's doors that the command line opens itself, in the function that needs them.
COMMAND_DOORS = {"serve", "models", "data", "chat"}
# Files of the run directory whose readers are in the library and load nothing.
CONTROL_READS = {"formats"}
HEAVY = {"torch", "transformers", "peft", "accelerate", "datasets", "deepspeed", "bitsandbytes"}
NO_HYDRA = STAGES | LIBRARY | BASE | BESIDE | {"worker"}


def modules() -> dict[str, Path]:
    found = {}
    for file in sorted(SRC.rglob("*.py")):
        name = file.relative_to(SRC).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        found[name] = file
    return found


def imports(file: Path) -> set[str]:
    """All modules a file imports, inside functions too; `from a import b` counts as a.b."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{file} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(file: Path) -> set[str]:
    return {name.removeprefix("tunerun.") for name in imports(file) if name.startswith("tunerun.")}


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def test_there_is_something_to_check():
    assert len(modules()) > 40


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_only_what_stands_below_it(name):
    head = name.split(".")[0]
    for imported in ours(modules()[name]):
        target = imported.split(".")[0]
        if target == head or target in BASE or imported in ("__version__",):
            continue
        if head in BASE:
            assert target in BASE, f"{name} is base and imports {imported}"
        elif head in LIBRARY | BESIDE:
            assert target in LIBRARY or within(imported, STEP_TYPES), f"{name} is library and imports {imported}"
        elif head in STAGES:
            allowed = target in LIBRARY or within(imported, STEP_TYPES)
            assert allowed, f"{name} is a stage and imports {imported}"
        elif head in CONTROL:
            below = set(CONTROL[: CONTROL.index(head)])
            allowed = target in below or (head == "commands" and target in COMMAND_DOORS)
            assert allowed or within(imported, CONTROL_READS), f"{name} is control and imports {imported}"


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] in NO_HYDRA])
def test_stages_and_library_never_see_hydra(name):
    assert not {item.split(".")[0] for item in imports(modules()[name])} & {"hydra", "omegaconf"}


@pytest.mark.parametrize("name", [name for name in modules() if name.split(".")[0] in {*CONTROL, *BASE, "worker"}])
def test_the_control_layer_never_imports_a_heavy_library(name):
    assert not {item.split(".")[0] for item in imports(modules()[name])} & HEAVY


# Run by the interpreter of a quantiser, which has torch.
ELSEWHERE = {"export.compressed_child"}


@pytest.mark.parametrize(
    "name",
    [n for n in modules() if n.split(".")[0] in {"formats", "chat", "data", "merge", "export"} and n not in ELSEWHERE],
)
def test_what_needs_no_torch_does_not_import_it(name):
    assert not {item.split(".")[0] for item in imports(modules()[name])} & (HEAVY - {"datasets"})


def test_only_the_worker_names_the_stages():
    for name, file in modules().items():
        if name == "worker":
            continue
        text = file.read_text(encoding="utf-8")
        for stage in STAGES:
            assert f'"tunerun.{stage}.stage' not in text, f"{name} names the stage {stage}"


def test_every_entry_of_the_worker_is_a_function_of_step_and_folder():
    import inspect

    from tunerun import worker

    for stage in worker.STAGES:
        parameters = list(inspect.signature(worker.load_stage(stage)).parameters)
        assert parameters == ["step", "out"], stage


def loaded(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(' '.join(sys.modules))"],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_importing_the_command_line_loads_neither_hydra_nor_anything_heavy():
    assert not loaded("import tunerun.cli; tunerun.cli.dispatch(['--help'])") & (
        HEAVY | {"hydra", "omegaconf", "numpy"}
    )


def test_planning_loads_nothing_heavy():
    code = "import tunerun.cli; tunerun.cli.dispatch(['plan', '+recipe=qwen2.5-lora'])"
    assert not loaded(code) & (HEAVY | {"numpy", "optuna", "sqlalchemy", "huggingface_hub", "tokenizers"})
