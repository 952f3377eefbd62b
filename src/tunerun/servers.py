"""Inference servers of other projects that answers can come from: where they are installed, and what tunerun sets."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from tunerun.errors import Problem

GGUF_ENGINES = ("llamacpp", "ollama", "llama_server")
"""Engines that answer from GGUF files; all others do from model folders."""

_ASK_SECONDS = 30
_HAS_PACKAGE = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """What is known of a kind of server before it is started."""

    package: str | None
    """Python package that has it; None for a program."""
    program: str = ""
    """Its name on the PATH."""
    install: str
    """How it is installed."""
    decided: frozenset[str]
    """Arguments that tunerun decides, so that `serve.extra_args` may not have them."""


SERVERS: Mapping[str, Server] = {
    "vllm": Server(
        package="vllm",
        install="python -m venv vllm-env && vllm-env/bin/pip install 'vllm>=0.32', "
        "then env.serve.python=vllm-env/bin/python",
        decided=frozenset(
            (
                "model", "served_model_name", "host", "port", "uds", "api_key", "max_model_len", "enable_lora",
                "lora_modules", "max_lora_rank", "chat_template", "tensor_parallel_size", "generation_config",
                "root_path", "ssl_keyfile", "ssl_certfile", "enable_tokenizer_info_endpoint", "config",
            )
        ),
    ),
    "lmdeploy": Server(
        package="lmdeploy",
        install="python -m venv lmdeploy-env && lmdeploy-env/bin/pip install lmdeploy, "
        "then env.serve.python=lmdeploy-env/bin/python",
        decided=frozenset(
            (
                "model_path", "model_name", "server_name", "server_port", "api_keys", "session_len", "tp", "ssl",
                "proxy_url", "adapters",
            )
        ),
    ),
    "ollama": Server(
        package=None,
        program="ollama",
        install="Install Ollama, so that `ollama` is on the PATH",
        decided=frozenset(("stop", "num_ctx", "num_predict", "temperature", "top_p", "top_k", "seed")),
    ),
    "llama_server": Server(
        package=None,
        program="llama-server",
        install="Install llama.cpp, so that `llama-server` is on the PATH",
        decided=frozenset(
            (
                "model", "host", "port", "api_key", "api_key_file", "ctx_size", "lora", "lora_scaled",
                "lora_init_without_apply", "webui", "ui", "path", "hf_repo", "model_url", "ssl_key_file",
                "ssl_cert_file", "tools", "ui_mcp_proxy", "webui_mcp_proxy", "models_dir",
            )
        ),
    ),
}  # fmt: skip


def missing(engine: str, python: str | None) -> Problem | None:
    """Says that an engine's server is not installed; None when it is, or when the engine is no server.

    Args:
        engine: Name of the engine.
        python: `env.serve.python`; None for tunerun's own interpreter.
    """
    server = SERVERS.get(engine)
    if server is None:
        return None
    if server.package is None:
        if shutil.which(server.program) is not None:
            return None
        return Problem(
            where="serve.engine", what=f"there is no `{server.program}` on the PATH.", fix=f"{server.install}."
        )
    if python is not None and shutil.which(python) is None:
        return Problem(where="env.serve.python", what=f"there is no interpreter {python}.")
    if has_package(server.package, python):
        return None
    where = "this environment" if python is None else f"the environment of {python}"
    return Problem(
        where="env.serve.python", what=f"{server.package} is not installed in {where}.", fix=f"{server.install}."
    )


def has_package(package: str, python: str | None) -> bool:
    """Says whether an interpreter can import a package, without importing it.

    Args:
        package: Its top-level name.
        python: The interpreter; None for this one.
    """
    if python is None:
        spec = importlib.util.find_spec(package)
        return spec is not None and spec.origin is not None
    command = [python, "-I", "-c", _HAS_PACKAGE, package]
    try:
        return subprocess.run(command, capture_output=True, timeout=_ASK_SECONDS, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
