"""A run as a job for a cluster: the script that Slurm queues. Pure: nothing is submitted here."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tunerun import artifacts
from tunerun.config.checks import size_bytes
from tunerun.config.schema import RunConfig
from tunerun.errors import ExitCode
from tunerun.plan import nodes
from tunerun.plan.plan import Plan

SLURM_SCRIPT = "job.sbatch"
SLURM_LOG = f"{artifacts.LOGS}/slurm-%j.log"

_START = """\
# One tunerun on each node: the first runs all stages, the others compute their share of training.
srun --ntasks-per-node=1 --cpus-per-task="${{SLURM_CPUS_PER_TASK:-1}}" --wait=0 \\
    {resume} &
step=$!
"""
_SIGNALS = """\
# {seconds} s before the time limit Slurm sends USR1 to this script: training saves and ends with {preempted}.
{limit}woken=
trap '{near}woken=yes; kill -USR1 "$step"' USR1
# When the job is cancelled or preempted, Slurm itself sends TERM to every process.
trap 'woken=yes' TERM
"""
_WAIT = """\
# A signal ends the wait but not what is waited for.
while
    woken=
    code=0
    wait "$step" || code=$?
    [ "$woken" ]
do :; done
"""
_REQUEUE = """\
if [ "$limit" ] && [ "$code" -eq {preempted} ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
"""


def slurm_script(plan: Plan, config: RunConfig, directory: Path) -> str:
    """Renders the batch script of a run; its body is `tunerun resume RUN`, so that it can be submitted again.

    Args:
        plan: Of the run.
        config: What the plan was made from.
        directory: Where the job starts: relative paths of options and recipes mean the same there.
    """
    cluster = config.cluster
    options = {
        "job-name": plan.name,
        "chdir": str(directory),
        "output": str(Path(plan.run_dir) / SLURM_LOG),
        "open-mode": "append",
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "time": cluster.time,
        "nodes": str(cluster.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(nodes.cpus(config)),
        "gpus-per-node": str(nodes.gpus(plan)) if nodes.gpus(plan) else None,
        "mem": f"{-(-size_bytes(cluster.memory) // (1 << 20))}M" if cluster.memory is not None else None,
        "signal": f"B:USR1@{cluster.signal_seconds}",
    }
    lines = [f"#SBATCH --{name}={shlex.quote(value)}" for name, value in options.items() if value is not None]
    lines.append("#SBATCH --requeue" if cluster.requeue else "#SBATCH --no-requeue")
    lines += [f"#SBATCH {line}" for line in cluster.extra]
    ended = int(ExitCode.PREEMPTED)
    mark = {"limit": "limit=\n", "near": "limit=near "} if cluster.requeue else {"limit": "", "near": ""}
    python = (cluster.python or sys.executable, "-P", "-m", "tunerun")
    texts = [
        "#!/bin/bash",
        "# The job of a run of tunerun. It may be edited, and submitted again: a run goes on where it stopped.",
        *lines,
        "",
        "set -e",
        *cluster.setup,
        "",
        _START.format(resume=shlex.join([*python, "resume", plan.run_dir])),
        _SIGNALS.format(seconds=cluster.signal_seconds, preempted=ended, **mark),
        _WAIT,
        *([_REQUEUE.format(preempted=ended)] if cluster.requeue else []),
        'exit "$code"',
    ]
    return "\n".join(texts) + "\n"
