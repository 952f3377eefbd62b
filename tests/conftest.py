"""What all tests share: the real material beside the checkout, and Hydra's globals cleared."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[1]

# Waiting threads that spin make small models crawl when other work shares the cores; read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# As the reader of workbooks has it; openpyxl looks once, and tests that write workbooks import it first.
os.environ["OPENPYXL_LXML"] = "False"

# The same examples each time, and no time limit for one: other work shares the machine.
settings.register_profile("tunerun", deadline=None, derandomize=True)
settings.load_profile("tunerun")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps prepared data and remembered hashes out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of public data sets, templates and tokenizers beside the checkout."""
    folder = Path(os.environ.get("TUNERUN_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the shared material, which is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a small byte-level tokenizer of Qwen2's make and the ChatML template; no weights."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = Regex(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    text = "The user asks and the assistant answers.\n\nWho are you? 你好，世界。 def f(x):\n    return x\n"
    tokenizer.train_from_iterator([text, "\n\n"] * 9, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("<tool_call>", "</tool_call>")])
    folder = tmp_path_factory.mktemp("chat_model")
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}, "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    chatml = ROOT / "src" / "tunerun" / "chat" / "templates" / "chatml.jinja"
    (folder / "chat_template.jinja").write_text(chatml.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


# What variables begin with that pytest sets, and libraries when they are imported.
_NOT_OURS = ("PYTEST_", "KMP_", "PYTORCH_", "TORCHINDUCTOR_", "TRITON_", "TOKENIZERS_")


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """Fails a file that changes what the next file of the same worker meets."""
    before = _process()
    yield
    if "torch" in sys.modules:
        import torch

        # A stage sets these for a process of its own, and tests run stages in this one.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.use_deterministic_algorithms(False)
    now = _process()
    changed = {name: (before.get(name), now.get(name)) for name in {*before, *now} if before.get(name) != now.get(name)}
    assert changed == {}


def _process() -> dict[str, Any]:
    """Returns what one test can change in the process for another."""
    umask = os.umask(0o022)
    os.umask(umask)
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
    return {
        **{f"${name}": value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)},
        **{number.name: signal.getsignal(number) for number in stops},
        "folder": Path.cwd(),
        "arguments": list(sys.argv),
        "import path": list(sys.path),
        "umask": umask,
        "log level": logging.root.level,
        "log handlers": [one for one in logging.root.handlers if not type(one).__module__.startswith("_pytest")],
    }


@pytest.fixture(autouse=True)
def _clean_hydra() -> Iterator[None]:
    yield
    if "hydra" in sys.modules:
        from hydra.core.global_hydra import GlobalHydra

        GlobalHydra.instance().clear()


@pytest.fixture
def tunerun(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in an empty folder, offline, as a user would."""

    def call(*arguments: str, cwd: Path = tmp_path, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100"}
        return subprocess.run(
            [sys.executable, "-m", "tunerun", *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )

    return call
