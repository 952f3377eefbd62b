"""The nodes of a run: the leader runs all stages, and the others start their ranks when it says so.

Every node runs the same command. The others connect to the leader, learn its run directory, and wait. Messages are JSON
objects, one a line; each side says something every few seconds, so that the other notices when it is gone, whatever
became of it.

    leader    {"run_dir": folder, "node": n}   {"launch": stage, "attempt": n}   {"over": true}   {"end": exit code}
    follower  {"name": host}                   {"ended": attempt, "error": text or null}
    both      {}                               a sign of life
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunerun.config.schema import RunConfig
from tunerun.errors import Preempted, Problem, StageError, UserError
from tunerun.launch.allocation import allocation
from tunerun.launch.command import Node

SILENCE_SECONDS = 15.0
"""Time without a sign of life after which a node is taken for lost."""
JOIN_SECONDS = 900.0
"""Time that the nodes have to come together: a cluster may start them minutes apart."""
_BEAT_SECONDS = 2.0
_POLL_SECONDS = 0.1
_CONNECT_SECONDS = 5.0
# A run that has nothing to do ends before the other nodes have started Python.
_FAREWELL_SECONDS = 20.0
# linux/sockios.h: the address of a network interface.
_SIOCGIFADDR = 0x8915

Message = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """Where the nodes of a run meet."""

    host: str
    """Name or address of the leader."""
    port: int
    """Where it listens; the ranks meet on the next one."""
    nodes: int
    is_leader: bool
    """Whether this is the leader."""


def meeting(config: RunConfig, env: Mapping[str, str]) -> Meeting | None:
    """Returns where this process meets those of other nodes; None for a run on one node, and outside its job.

    Raises:
        UserError: The rendezvous is no name or address that can be found.
    """
    cluster = config.cluster
    if cluster.nodes == 1:
        return None
    place = allocation(env)
    if place is not None:
        return Meeting(host=place.leader, port=place.port, nodes=place.nodes, is_leader=place.node == 0)
    if cluster.kind != "multi_node":
        return None
    assert cluster.rendezvous is not None, "the checks ask for it"
    host, _, port = cluster.rendezvous.rpartition(":")
    return Meeting(host=host, port=int(port), nodes=cluster.nodes, is_leader=_is_here(host))


def _is_here(host: str) -> bool:
    """Says whether an address belongs to this machine: nobody else can listen on it."""
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        what = f"{host} cannot be found: {error.strerror}."
        raise UserError(Problem(where="cluster.rendezvous", what=what, fix="Write the address of a node.")) from error
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


class Line:
    """A connection to another node that notices when the other side is gone."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        connection.settimeout(SILENCE_SECONDS)
        self.name = name
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._connection, self._lost = connection, ""
        self._closed = threading.Event()
        self._sending = threading.Lock()
        for work in (self._read, self._beat):
            threading.Thread(target=work, daemon=True).start()

    @property
    def own_address(self) -> str:
        """Address of this side."""
        return str(self._connection.getsockname()[0])

    def send(self, message: Message) -> None:
        """Sends a message; one that cannot be sent is noticed as a loss."""
        with self._sending:
            try:
                self._connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError as error:
                self._lose(f"it cannot be reached ({error.strerror or error})")

    def lost(self) -> str | None:
        """Returns how the other side was lost; None while it is there."""
        return self._lost or None

    def receive(self, seconds: float) -> Message | None:
        """Returns the next message; None when there is none in time."""
        try:
            return self.inbox.get(timeout=seconds)
        except queue.Empty:
            return None

    def has_more(self) -> bool:
        """Says whether the other side said something that was not received yet."""
        return not self.inbox.empty()

    def close(self) -> None:
        """Ends the connection."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _read(self) -> None:
        try:
            with self._connection.makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line)
                    if message:
                        self.inbox.put(message)
            self._lose("it closed the connection")
        except TimeoutError:
            self._lose(f"it said nothing for {SILENCE_SECONDS:.0f} s")
        except (OSError, ValueError) as error:
            self._lose(f"its connection broke ({error})")

    def _beat(self) -> None:
        while not self._closed.wait(_BEAT_SECONDS) and not self._lost:
            self.send({})

    def _lose(self, how: str) -> None:
        if not self._closed.is_set():
            self._lost = self._lost or how


class Leader:
    """The other nodes, as the leader sees them."""

    def __init__(self, place: Meeting, run_dir: str) -> None:
        """Listens for the other nodes from now on.

        Raises:
            StageError: Another program listens there.
        """
        self._place, self._run_dir = place, run_dir
        self._lines: list[Line] = []
        self._errors: dict[int, str] = {}
        self._attempt = 0
        self._farewell_seconds = _FAREWELL_SECONDS
        try:
            # On all addresses: the leader's own name may be the loopback's here.
            self._server = socket.create_server(("", place.port), backlog=place.nodes)
        except OSError as error:
            raise StageError(f"the nodes cannot meet at {place.host}:{place.port}: {error.strerror}") from error
        threading.Thread(target=self._accept, daemon=True).start()

    def launch(self, stage: str, stopped: Callable[[], bool]) -> Node:
        """Waits for all nodes and has them start their ranks of a stage.

        Args:
            stage: Its name.
            stopped: Whether a signal asked this process to stop.

        Returns:
            This node among them.

        Raises:
            StageError: Not all nodes came in time, or one is gone.
            Preempted: A signal came first.
        """
        deadline = time.monotonic() + JOIN_SECONDS
        # Those that do not come now are not waited for again.
        self._farewell_seconds = 0.0
        while len(self._lines) < self._place.nodes - 1:
            if stopped():
                raise Preempted("stopped while it waited for the other nodes.")
            if time.monotonic() > deadline:
                there = ", ".join(line.name for line in self._lines) or "none"
                raise StageError(f"{self._place.nodes - 1} other nodes are planned, and these came: {there}.")
            time.sleep(_POLL_SECONDS)
        self._errors.clear()
        self._attempt += 1
        lost = self.fault()
        if lost is not None:
            raise StageError(lost)
        for line in self._lines:
            line.send({"launch": stage, "attempt": self._attempt})
        return _node(self._place, 0, self._lines[0].own_address)

    def over(self) -> None:
        """Tells the other nodes that this one's ranks have ended, by themselves or not: theirs wait for nothing now."""
        for line in self._lines:
            line.send({"over": True})

    def fault(self) -> str | None:
        """Looks at the other nodes; returns what is wrong with one of them, by its name."""
        for number, line in enumerate(self._lines, start=1):
            while (message := line.receive(0)) is not None:
                # What is told of an earlier attempt may come late.
                if message["error"] is not None and message["ended"] == self._attempt:
                    self._errors[number] = f"node {number} ({line.name}): {message['error']}"
            lost = line.lost()
            if lost is not None:
                return f"node {number} ({line.name}) is gone: {lost}"
        return next(iter(self._errors.values()), None)

    def end(self, code: int) -> None:
        """Tells the other nodes how the run ended, and lets them go; those that are about to come are waited for."""
        deadline = time.monotonic() + self._farewell_seconds
        while len(self._lines) < self._place.nodes - 1 and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        # Closing it alone would leave it open as long as somebody waits in it.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for line in self._lines:
            line.send({"end": code})
            line.close()

    def _accept(self) -> None:
        # Those that come too many are not answered, and wait in vain.
        while len(self._lines) < self._place.nodes - 1:
            try:
                connection, address = self._server.accept()
            except OSError:
                return
            line = Line(connection, address[0])
            told = line.receive(_CONNECT_SECONDS)
            if told is None or "name" not in told:
                line.close()
                continue
            line.name = f"{told['name']}, {address[0]}"
            line.send({"run_dir": self._run_dir, "node": len(self._lines) + 1})
            self._lines.append(line)


@contextlib.contextmanager
def leading(place: Meeting | None, run_dir: str) -> Iterator[Leader | None]:
    """Leads the other nodes within the block; None for a run on one node."""
    if place is None:
        yield None
        return
    leader = Leader(place, run_dir)
    try:
        yield leader
    finally:
        # Without a code of its own a run failed.
        leader.end(1)


def join(place: Meeting, stopped: Callable[[], bool]) -> tuple[Line, Node, str]:
    """Connects to the leader, which may start later.

    Args:
        place: Where it is.
        stopped: Whether a signal asked this process to stop.

    Returns:
        The connection, this node, and the leader's run directory.

    Raises:
        StageError: There is no leader.
        Preempted: A signal came first.
    """
    deadline, error = time.monotonic() + JOIN_SECONDS, "it does not answer"
    while time.monotonic() < deadline:
        if stopped():
            raise Preempted("stopped while it waited for the leader.")
        try:
            connection = socket.create_connection((place.host, place.port), timeout=_CONNECT_SECONDS)
        except OSError as caught:
            error = str(caught)
            time.sleep(_POLL_SECONDS * 5)
            continue
        line = Line(connection, f"{place.host}:{place.port}")
        line.send({"name": socket.gethostname()})
        told = line.receive(SILENCE_SECONDS)
        if told is not None and "node" in told:
            return line, _node(place, told["node"], line.own_address), str(told["run_dir"])
        line.close()
    raise StageError(f"there is no leader at {place.host}:{place.port}: {error}")


def _node(place: Meeting, number: int, address: str) -> Node:
    return Node(number=number, host=place.host, port=place.port + 1, interface=interface(address))


def interface(address: str) -> str | None:
    """Returns the network interface that has an IPv4 address; None when none has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):
                if socket.inet_ntoa(fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24]) == address:
                    return name
    return None
