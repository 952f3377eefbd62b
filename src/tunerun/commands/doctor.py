"""`tunerun doctor`: says what this machine has and which extras are installed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

from tunerun import __version__, machine
from tunerun.commands import arguments
from tunerun.errors import ExitCode, UserError
from tunerun.plan.readiness import is_installed

# Import name, distribution, and the extra that installs it; no extra: always needed.
_MODULES = (
    ("torch", "torch", None),
    ("transformers", "transformers", None),
    ("peft", "peft", None),
    ("accelerate", "accelerate", None),
    ("datasets", "datasets", None),
    ("hydra", "hydra-core", None),
    ("gguf", "gguf", "gguf"),
    ("llama_cpp", "llama-cpp-python", "gguf"),
    ("deepspeed", "deepspeed", "deepspeed"),
    ("bitsandbytes", "bitsandbytes", "quant"),
    ("vllm", "vllm", "vllm"),
    ("tensorboard", "tensorboard", "tensorboard"),
    ("wandb", "wandb", "wandb"),
    ("trackio", "trackio", "trackio"),
    ("mlflow", "mlflow", "mlflow"),
    ("swanlab", "swanlab", "swanlab"),
    ("optuna", "optuna", "sweep"),
    ("modelscope", "modelscope", "hub"),
    ("lm_eval", "lm-eval", "lm-eval"),
)


def main(argv: Sequence[str]) -> int:
    """Prints a line for each fact.

    Returns:
        1 when something that every run needs is missing, else 0.

    Raises:
        UserError: Arguments were given.
    """
    _, rest = arguments.split(argv, flags=(), values=())
    if rest:
        raise UserError("doctor takes no arguments.")
    facts = machine.facts()
    print(f"tunerun     {__version__}, Python {facts.python}")
    print(f"CPU         {facts.cores} cores, {facts.memory_bytes / 1e9:.1f} GB of memory")
    print(f"disk        {machine.free_bytes(Path.cwd()) / 1e9:.1f} GB free here")
    for gpu in facts.gpus:
        print(f"GPU         {gpu.name}, {gpu.memory_bytes / 1e9:.1f} GB, compute capability {gpu.compute_capability}")
    if not facts.gpus:
        print("GPU         none found by nvidia-smi")
    missing = False
    for module, distribution, extra in _MODULES:
        if is_installed(module):
            print(f"{distribution:<20}{importlib.metadata.version(distribution)}")
        elif extra is None:
            missing = True
            print(f"{distribution:<20}MISSING: pip install {distribution}")
        else:
            print(f"{distribution:<20}not installed: pip install 'tunerun[{extra}]'")
    return ExitCode.STAGE_FAILED if missing else ExitCode.DONE
