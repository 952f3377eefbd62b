"""Nodes that meet over real connections of this machine: who leads, who waits, and who is missed."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from tests.plan.test_build import config
from tunerun.errors import Preempted, StageError, UserError
from tunerun.launch import nodes
from tunerun.launch.nodes import Leader, Meeting

MULTI = {"cluster__kind": "multi_node", "cluster__nodes": 2, "hardware__strategy": "ddp"}
NEVER = bool


@pytest.fixture
def place():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return Meeting(host="127.0.0.1", port=port, nodes=2, is_leader=True)


@pytest.fixture
def pair(place):
    """A leader that has had its follower start, and the follower's end of the line."""
    leader = Leader(place, "/runs/one")
    line, node, folder = nodes.join(place, NEVER)
    yield leader, line, node, folder
    line.close()
    leader.end(1)


def until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def test_a_run_on_one_node_meets_nobody():
    assert nodes.meeting(config(), {}) is None


def test_the_node_that_has_the_address_leads():
    here = nodes.meeting(config(**MULTI, cluster__rendezvous="127.0.0.1:29400"), {})
    assert here == Meeting(host="127.0.0.1", port=29400, nodes=2, is_leader=True)
    # TEST-NET-1 (RFC 5737) is nobody's.
    assert nodes.meeting(config(**MULTI, cluster__rendezvous="192.0.2.1:29400"), {}).is_leader is False


def test_a_rendezvous_that_cannot_be_found_is_the_users_mistake():
    with pytest.raises(UserError, match=r"cluster\.rendezvous: no-such-host\.invalid cannot be found"):
        nodes.meeting(config(**MULTI, cluster__rendezvous="no-such-host.invalid:29400"), {})


def test_slurm_says_where_its_nodes_meet():
    hosts = "gpu[1-2]"
    env = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_NODEID": "1", "SLURM_STEP_NUM_NODES": "2",
           "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": hosts, "SLURM_JOB_NODELIST": hosts}  # fmt: skip
    found = nodes.meeting(config(**{**MULTI, "cluster__kind": "slurm"}), env)
    assert found == Meeting(host="gpu1", port=20014, nodes=2, is_leader=False)


def test_a_follower_learns_its_number_and_where_the_run_is(pair, place):
    leader, line, node, folder = pair
    assert folder == "/runs/one"
    assert (node.number, node.host, node.port, node.interface) == (1, "127.0.0.1", place.port + 1, "lo")
    mine = leader.launch("train", NEVER)
    assert (mine.number, mine.port) == (0, place.port + 1)
    assert line.receive(5) == {"launch": "train", "attempt": 1}
    line.send({"ended": 1, "error": None})
    time.sleep(0.1)
    assert leader.fault() is None
    assert not line.has_more()
    leader.over()
    until(line.has_more)
    assert line.receive(5) == {"over": True}
    leader.end(75)
    assert line.receive(5) == {"end": 75}


def test_a_follower_waits_for_a_leader_that_starts_later(place):
    found = []
    waiting = threading.Thread(target=lambda: found.append(nodes.join(place, NEVER)))
    waiting.start()
    time.sleep(0.7)
    leader = Leader(place, "/runs/one")
    waiting.join(10)
    ((line, node, _),) = found
    assert node.number == 1
    line.close()
    leader.end(0)


def test_a_rank_that_was_lost_elsewhere_is_told_by_node(pair):
    leader, line, *_ = pair
    leader.launch("train", NEVER)
    line.send({"ended": 1, "error": "rank 1 (process 7) died"})
    until(lambda: leader.fault() is not None)
    assert leader.fault() == f"node 1 ({socket.gethostname()}, 127.0.0.1): rank 1 (process 7) died"
    # A restart begins anew, whatever is still told of the attempt before.
    leader.launch("train", NEVER)
    line.send({"ended": 1, "error": "rank 1 (process 7) died"})
    time.sleep(0.1)
    assert leader.fault() is None


def test_a_node_that_is_gone_is_named(pair):
    leader, line, *_ = pair
    leader.launch("train", NEVER)
    line.close()
    until(lambda: leader.fault() is not None)
    assert leader.fault() == f"node 1 ({socket.gethostname()}, 127.0.0.1) is gone: it closed the connection"
    with pytest.raises(StageError, match=r"node 1 .* is gone"):
        leader.launch("train", NEVER)


def test_a_leader_that_is_gone_is_noticed(pair):
    leader, line, *_ = pair
    leader.end(1)
    assert line.receive(5) == {"end": 1}
    until(lambda: line.lost() is not None)


def test_silence_is_noticed(place, monkeypatch):
    monkeypatch.setattr(nodes, "SILENCE_SECONDS", 0.5)
    ours, theirs = socket.socketpair()
    line = nodes.Line(ours, "gpu2")
    until(lambda: line.lost() is not None)
    assert line.lost().startswith("it said nothing for")
    line.close()
    theirs.close()


def test_a_run_that_ends_at_once_tells_a_node_that_comes_late(place):
    leader = Leader(place, "/runs/one")
    ending = threading.Thread(target=leader.end, args=(2,))
    ending.start()
    line, node, _ = nodes.join(place, NEVER)
    assert (node.number, line.receive(5)) == (1, {"end": 2})
    ending.join()
    line.close()


def test_a_signal_ends_the_wait_for_the_others(place):
    leader = Leader(place, "/runs/one")
    with pytest.raises(Preempted):
        leader.launch("train", lambda: True)
    leader.end(75)
    with pytest.raises(Preempted):
        nodes.join(place, lambda: True)


def test_nodes_that_do_not_come_are_counted(place, monkeypatch):
    monkeypatch.setattr(nodes, "JOIN_SECONDS", 0.3)
    leader = Leader(place, "/runs/one")
    with pytest.raises(StageError, match="1 other nodes are planned, and these came: none"):
        leader.launch("train", NEVER)
    leader.end(1)
    with pytest.raises(StageError, match=r"there is no leader at 127\.0\.0\.1"):
        nodes.join(place, NEVER)


def test_a_taken_port_is_told(place):
    with socket.create_server(("", place.port)), pytest.raises(StageError, match="the nodes cannot meet at"):
        Leader(place, "/runs/one")


def test_a_stranger_takes_no_place(place, monkeypatch):
    monkeypatch.setattr(nodes, "_CONNECT_SECONDS", 0.3)
    leader = Leader(place, "/runs/one")
    with socket.create_connection(("127.0.0.1", place.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        line, node, _ = nodes.join(place, NEVER)
    assert node.number == 1
    line.close()
    leader.end(0)
