"""The engine process: `python -m tunerun.serve.engines.child DESCRIPTOR`.

One thread takes messages off the socket, another hands them to the engine's service, whose own work is on the main
thread. The process ends when the gateway closes the socket, however that came about.
"""

from __future__ import annotations

import importlib
import os
import queue
import signal
import socket
import sys
import threading
from typing import cast

from tunerun.errors import TunerunError
from tunerun.serve.engines.base import Service, Start
from tunerun.serve.engines.outbox import Outbox
from tunerun.serve.protocol import (
    Cancel,
    EngineName,
    EngineSpec,
    Failed,
    Generate,
    Tokenize,
    decode,
    decode_spec,
)

ENGINES: dict[EngineName, str] = {
    "llamacpp": "tunerun.serve.engines.llamacpp",
    "transformers": "tunerun.serve.engines.transformers",
    "vllm": "tunerun.serve.engines.vllm",
    "lmdeploy": "tunerun.serve.engines.lmdeploy",
    "ollama": "tunerun.serve.engines.ollama",
    "llama_server": "tunerun.serve.engines.llama_server",
}
"""The module of each engine; its function `start` loads the model."""


def main(argv: list[str]) -> int:
    """Loads an engine and serves it until the socket closes.

    Args:
        argv: The number of the socket's descriptor.

    Returns:
        The exit code; only when the engine cannot be loaded.
    """
    # The gateway decides when to end: it gets the terminal's Ctrl+C too, and closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.excepthook = _die
    connection = socket.socket(fileno=int(argv[0]))
    inbox: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    spec = decode_spec(inbox.get())
    outbox = Outbox(connection)
    try:
        service = _start_function(spec)(spec, outbox.send)
    except (TunerunError, OSError, ValueError, RuntimeError) as error:
        outbox.send(Failed(message=str(error)))
        return 1
    threading.Thread(target=_receive_all, args=(service, inbox), daemon=True).start()
    outbox.send(service.ready)
    return service.run()


def _start_function(spec: EngineSpec) -> Start:
    return cast(Start, vars(importlib.import_module(ENGINES[spec.engine]))["start"])


def _read(connection: socket.socket, inbox: queue.Queue[bytes]) -> None:
    with connection.makefile("rb") as lines:
        for line in lines:
            inbox.put(line)
    # The gateway is gone. The main thread may be deep in a computation that no exception reaches.
    os._exit(0)


def _receive_all(service: Service, inbox: queue.Queue[bytes]) -> None:
    while True:
        message = decode(inbox.get())
        assert isinstance(message, Generate | Cancel | Tokenize)
        service.receive(message)


def _die(failure: threading.ExceptHookArgs) -> None:
    """Ends the process with its thread: with half of it gone, every request would wait for ever."""
    threading.__excepthook__(failure)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
