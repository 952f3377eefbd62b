"""Rules of the section `cluster`."""

from __future__ import annotations

import re

from tunerun.config.schema import RunConfig
from tunerun.errors import Problem

_SLURM_TIME = re.compile(r"\d+-\d{1,2}(:\d{1,2}){0,2}|\d+(:\d{1,2}){1,2}")
_RENDEZVOUS = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*:[1-9]\d{1,4}")


def check(config: RunConfig) -> list[Problem]:
    """Finds what does not go with where a run is placed."""
    cluster = config.cluster
    problems = []
    if cluster.kind == "local" and cluster.nodes > 1:
        what = f"local is this machine, and {cluster.nodes} are asked for."
        fix = "Choose cluster=multi_node with cluster.rendezvous=HOST:29400, or slurm or skypilot."
        problems.append(Problem(where="cluster.kind", what=what, fix=fix))
    # What is in a file of accelerate's is checked when it has been read.
    is_open = config.hardware.accelerate is not None
    # With hardware.processes set, the rule of `processes` tells it.
    alone = config.hardware.strategy == "single" and config.hardware.processes is None
    if cluster.nodes > 1 and alone and not is_open:
        what = f"single is one process, and there are {cluster.nodes} nodes."
        fix = "Choose hardware=ddp, zero2, zero3 or fsdp2, or set cluster.nodes=1."
        problems.append(Problem(where="hardware.strategy", what=what, fix=fix))
    for key in ("partition", "account", "qos", "python", "infra", "storage"):
        value = getattr(cluster, key)
        if value is not None and (not value or not value.isprintable() or " " in value):
            what = f"{value!r} cannot stand in a job script."
            problems.append(Problem(where=f"cluster.{key}", what=what, fix="Write one word."))
    if cluster.time is not None and not _SLURM_TIME.fullmatch(cluster.time):
        # YAML reads 24:00:00 without quotes as a number.
        what = f"{cluster.time!r} is no time limit."
        problems.append(Problem(where="cluster.time", what=what, fix='Write "24:00:00" or "2-12:00", in quotes.'))
    named = cluster.rendezvous is not None or not is_open
    if cluster.kind == "multi_node" and named and not _RENDEZVOUS.fullmatch(cluster.rendezvous or ""):
        what = f"{cluster.rendezvous or 'null'} is no place where nodes can meet."
        fix = "Write HOST:29400, with the name or address of one of the nodes, on each of them."
        problems.append(Problem(where="cluster.rendezvous", what=what, fix=fix))
    if cluster.kind == "skypilot":
        problems += _skypilot(config)
    for index, line in enumerate(cluster.extra):
        if not line.startswith("--") or not line.isprintable():
            fix = "Write one option of sbatch, such as --constraint=h100."
            problems.append(Problem(where=f"cluster.extra[{index}]", what=f"{line!r} is no option.", fix=fix))
    return problems


def _skypilot(config: RunConfig) -> list[Problem]:
    cluster, problems = config.cluster, []
    if not cluster.setup:
        fix = """Set cluster.setup=["pip install 'tunerun[gguf]'"], say."""
        problems.append(Problem(where="cluster.setup", what="nothing installs tunerun on the machines.", fix=fix))
    if cluster.nodes > 1 and (cluster.storage is None or "://" in cluster.storage):
        what = "the nodes need one run directory, and a bucket is no shared file system."
        problems.append(Problem(where="cluster.storage", what=what, fix="Name a volume of SkyPilot."))
    if cluster.spot and cluster.storage is None:
        what = "what a machine that is taken away has on its disk is lost."
        problems.append(Problem(where="cluster.storage", what=what, fix="Name a bucket or a volume."))
    return problems
