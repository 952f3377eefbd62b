"""A Slurm cluster of one machine for tests: munged, slurmctld and slurmd in a folder of their own.

Needs root and Debian's `slurm-wlm` and `munge`. Several nodes are several slurmd, each named after the loopback address
and with the port that it listens on: names under which nodes find each other without /etc/hosts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmstepd", "sbatch", "srun", "squeue", "scontrol", "scancel")
_START_SECONDS = 30.0
_SBIN = "/usr/sbin:/sbin"

_CONFIG = """\
ClusterName=tunerun
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
# A requeued job waits until its old credential has expired: 2 s instead of 2 min.
AuthInfo=socket={folder}/munge.socket,cred_expire=2
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
SchedulerParameters=bf_interval=1,sched_interval=1
KillWait=30
OverTimeLimit=0
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr={name} Port={port} CPUs={cpus} RealMemory=2000 State=UNKNOWN"


@dataclass(frozen=True)
class Cluster:
    """A running cluster."""

    folder: Path
    env: dict[str, str]
    """Variables under which Slurm's commands talk to it."""

    def ask(self, *argv: str) -> str:
        """Runs one of Slurm's commands and returns what it printed."""
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout.strip()


def missing() -> list[str]:
    """Returns what a cluster would need and this machine has not."""
    absent = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    return absent + ([] if os.geteuid() == 0 else ["the rights of root"])


@contextlib.contextmanager
def running(folder: Path, *, nodes: int = 1, cpus: int = 2) -> Iterator[Cluster]:
    """Starts a cluster of nodes with some CPUs each, and ends it and every process of its jobs."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    controller, *ports = _free_ports(1 + nodes)
    names = [f"127.0.0.{number + 1}" for number in range(nodes)]
    lines = [_NODE.format(name=name, host=host, port=port, cpus=cpus) for name, port in zip(names, ports, strict=True)]
    text = _CONFIG.format(folder=folder, host=host, controller_port=controller, nodes="\n".join(lines))
    (folder / "slurm.conf").write_text(text)
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    cluster = Cluster(folder=folder, env=env)
    started: list[subprocess.Popen[bytes]] = []
    try:
        started += [_munged(folder, env), _daemon(folder, env, "slurmctld", "-D")]
        started += [_daemon(folder, env, "slurmd", "-D", "-N", name) for name in names]
        _wait_until_idle(cluster)
        yield cluster
    finally:
        subprocess.run(["scancel", "--user=root", "--signal=KILL", "--full"], env=env, check=False, timeout=30)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _munged(folder: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    # It refuses folders that others may write to, such as /tmp; in a test that is no danger.
    names = {"key-file": key, "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
    names["seed-file"] = "munge.seed"
    options = [f"--{option}={folder / name}" for option, name in names.items()]
    return _daemon(folder, env, "munged", "--foreground", "--force", *options)


def _daemon(folder: Path, env: dict[str, str], *argv: str) -> subprocess.Popen[bytes]:
    with (folder / f"{argv[0]}.out").open("ab") as printed:
        return subprocess.Popen(argv, env=env, stdout=printed, stderr=printed, stdin=subprocess.DEVNULL)


def _wait_until_idle(cluster: Cluster) -> None:
    deadline = time.monotonic() + _START_SECONDS
    state = ""
    while time.monotonic() < deadline:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=cluster.env, capture_output=True, text=True, check=False
        )
        # One line, as long as all nodes are in the same state.
        state = done.stdout.strip() or done.stderr.strip()
        if state == "idle":
            return
        time.sleep(0.2)
    logs = "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(cluster.folder.glob("*.log")))
    raise AssertionError(f"the cluster did not come up: {state}\n{logs}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def _path() -> str:
    return f"{os.environ['PATH']}:{_SBIN}"
