"""Two nodes on one machine: network namespaces with a wire (a veth pair) between them, or two loopback addresses."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.conftest import ROOT
from tunerun.launch.allocation import allocation

PORT = 29400
_ADDRESSES = ("10.199.7.1", "10.199.7.2")
_MARK = "TUNERUN_TEST_NODE"


class Node(Protocol):
    """One of two."""

    address: str
    meets: str
    """What the leader is called in a message."""

    def start(self, folder: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts the `tunerun` command on this node."""

    def kill(self) -> None:
        """Kills every process on this node, as a loss of power would."""


@dataclass(frozen=True)
class Namespace:
    """A network namespace."""

    name: str
    address: str
    meets: str
    wire: str
    """Its end of the wire."""

    def start(self, folder: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """See `Node`."""
        return _start(folder, log, ["ip", "netns", "exec", self.name], {}, arguments)

    def kill(self) -> None:
        """See `Node`."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        _kill(found.stdout.split())

    def cut(self) -> None:
        """Takes the wire away: nothing is told to the other side."""
        subprocess.run(["ip", "-n", self.name, "link", "set", self.wire, "down"], check=True)


@dataclass(frozen=True)
class Loopback:
    """A loopback address. Both nodes would be the leader by it, so they are told apart as Slurm tells its tasks."""

    address: str
    meets: str
    env: Mapping[str, str]
    """What Slurm would set."""
    mark: str
    """Told to every process."""

    def start(self, folder: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """See `Node`."""
        return _start(folder, log, [], {**self.env, _MARK: self.mark}, arguments)

    def kill(self) -> None:
        """See `Node`."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"{_MARK}={self.mark}".encode() in environ.read_bytes().split(b"\0"):
                    found.append(environ.parent.name)
        _kill(found)


def _start(
    folder: Path, log: Path, before: Sequence[str], env: Mapping[str, str], arguments: Sequence[str]
) -> subprocess.Popen[bytes]:
    argv = [*before, sys.executable, "-P", "-m", "tunerun", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", **env}
    with log.open("wb") as printed:
        return subprocess.Popen(argv, cwd=folder, env=env, stdout=printed, stderr=printed, start_new_session=True)


def _kill(pids: Iterable[str]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def missing() -> str | None:
    """Returns what keeps this machine from having network namespaces."""
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
def two_addresses() -> Iterator[tuple[Loopback, Loopback]]:
    """Takes two loopback addresses for nodes, and ends all that runs there."""
    job, nodes = random.randrange(1, 1 << 20), []
    for number in range(2):
        variables = {"JOB_ID": job, "PROCID": number, "NODEID": number, "STEP_NUM_NODES": 2, "STEP_NUM_TASKS": 2,
                     "STEP_NODELIST": "127.0.0.[1-2]"}  # fmt: skip
        env = {f"SLURM_{name}": str(value) for name, value in variables.items()}
        place = allocation(env)
        assert place is not None
        leader, mark = f"{place.leader}:{place.port}", f"{job}.{number}"
        nodes.append(Loopback(address=f"127.0.0.{number + 1}", meets=leader, env=env, mark=mark))
    try:
        yield nodes[0], nodes[1]
    finally:
        for node in nodes:
            node.kill()


@contextlib.contextmanager
def two_namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Makes two nodes with a wire between them, and removes them with all that runs there."""
    tag, leader = uuid.uuid4().hex[:6], f"{_ADDRESSES[0]}:{PORT}"
    nodes = [Namespace(f"tunerun-{tag}-{number}", _ADDRESSES[number], leader, f"w{tag}{number}") for number in range(2)]
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
