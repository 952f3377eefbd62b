"""Two nodes on one machine: network namespaces with a wire (a veth pair) between them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

ADDRESSES = ("10.199.7.1", "10.199.7.2")


@dataclass(frozen=True)
class Node:
    """One namespace."""

    name: str
    address: str
    wire: str
    """Its end of the wire."""

    def start(self, folder: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts the `tunerun` command on this node."""
        argv = ["ip", "netns", "exec", self.name, sys.executable, "-P", "-m", "tunerun", *arguments]
        env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
        with log.open("wb") as printed:
            return subprocess.Popen(argv, cwd=folder, env=env, stdout=printed, stderr=printed, start_new_session=True)

    def kill(self) -> None:
        """Kills every process on this node, as a loss of power would."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        for pid in found.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def cut(self) -> None:
        """Takes the wire away: nothing is told to the other side."""
        subprocess.run(["ip", "-n", self.name, "link", "set", self.wire, "down"], check=True)


def missing() -> str | None:
    """Returns what keeps this machine from having two nodes."""
    if shutil.which("ip") is None:
        return "the command ip (Debian: apt-get install iproute2)"
    if os.geteuid() != 0:
        return "the rights of root"
    probe = f"tunerun-{uuid.uuid4().hex[:6]}"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"network namespaces: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Makes two nodes with a wire between them, and removes them with all that runs there."""
    tag = uuid.uuid4().hex[:6]
    nodes = [Node(f"tunerun-{tag}-{number}", ADDRESSES[number], f"w{tag}{number}") for number in range(2)]
    try:
        for node in nodes:
            _ip("netns", "add", node.name)
        _ip("link", "add", nodes[0].wire, "type", "veth", "peer", "name", nodes[1].wire)
        for node in nodes:
            _ip("link", "set", node.wire, "netns", node.name)
            _ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.wire)
            _ip("-n", node.name, "link", "set", node.wire, "up")
            _ip("-n", node.name, "link", "set", "lo", "up")
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            with contextlib.suppress(subprocess.CalledProcessError):
                node.kill()
                _ip("netns", "del", node.name)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
