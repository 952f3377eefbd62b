"""Runs a server that must not outlive the engine process: `python leash.py DESCRIPTOR FOLDER PROGRAM [ARGUMENT...]`.

The descriptor is the read end of a pipe whose write end only the engine process holds: when that one ends, however it
does, the server and what it started are ended too, and its folder is removed. Standard library only, for it starts
before every server.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading

_GRACE_SECONDS = 5.0


def main(argv: list[str]) -> int:
    """Runs the server in this process's group.

    Args:
        argv: The descriptor's number, the folder, and the server's command line.

    Returns:
        The server's exit code, or 128 more than the number of the signal that ended it.
    """
    # This process leads the group, and gets every signal that it sends there.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The group is in the background of a terminal, where `stty tostop` would stop whoever writes.
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    descriptor, folder, *command = argv
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_as_usual)
    threading.Thread(target=_hold, args=(int(descriptor), server, folder), daemon=True).start()
    code = server.wait()
    shutil.rmtree(folder, ignore_errors=True)
    # What it started may not have noticed.
    os.killpg(0, signal.SIGTERM)
    return code if code >= 0 else 128 - code


def _as_usual() -> None:
    """Gives the server the signals back: what is ignored would stay ignored in it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _hold(descriptor: int, server: subprocess.Popen[bytes], folder: str) -> None:
    while os.read(descriptor, 1):
        pass
    os.killpg(0, signal.SIGTERM)
    try:
        server.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
