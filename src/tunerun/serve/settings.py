"""Which engine is taken, and what servers are started with: from the config's keys."""

from __future__ import annotations

from tunerun import servers
from tunerun.config.schema import ServeConfig
from tunerun.plan.placement import Placement
from tunerun.serve.protocol import EngineName, ServerSettings


def server_settings(serve: ServeConfig, python: str | None, gpu_bytes: tuple[int, ...]) -> ServerSettings:
    """Returns what engines that are servers of their own are started with.

    Args:
        serve: Keys of the config.
        python: `env.serve.python`.
        gpu_bytes: Memory of each visible GPU.
    """
    return ServerSettings(python=python, processes=serve.gpus, gpu_bytes=gpu_bytes, extra_args=serve.extra_args)


def folder_engine(serve: ServeConfig, placement: Placement, python: str | None) -> EngineName:
    """Returns what serves model folders: what the user named, or vLLM on a GPU where it is installed.

    Args:
        serve: Keys of the config.
        placement: Says whether there is a GPU.
        python: `env.serve.python`.
    """
    if serve.engine in ("transformers", "vllm", "lmdeploy"):
        return serve.engine
    on_gpu = serve.engine == "auto" and placement.device == "cuda"
    return "vllm" if on_gpu and servers.missing("vllm", python) is None else "transformers"
