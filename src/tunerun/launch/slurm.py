"""Slurm's own commands: submit a script, ask for the state of jobs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

from tunerun.errors import Problem, UserError

_SUBMIT_SECONDS = 60.0
# Listing runs must not wait for a controller that is down.
_ASK_SECONDS = 5.0


def submit(script: Path, *options: str) -> str:
    """Queues a script and returns the id of its job.

    Args:
        script: For sbatch.
        options: That go before those in the script.

    Raises:
        UserError: Slurm is not there, or refused the script.
    """
    if shutil.which("sbatch") is None:
        typed = shlex.join(["sbatch", *options, str(script)])
        fix = f"Run this where Slurm's commands are, or submit it there: {typed}"
        raise UserError(Problem(where="cluster.kind", what="there is no sbatch on this machine.", fix=fix))
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", *options, str(script)],
            capture_output=True,
            text=True,
            timeout=_SUBMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        what = f"did not answer within {_SUBMIT_SECONDS:.0f} s; whether the job was queued is unknown."
        raise UserError(Problem(where="sbatch", what=what, fix="Look: squeue --me")) from error
    if done.returncode != 0:
        what = f"Slurm refused {script}: {' '.join(done.stderr.split())}"
        raise UserError(Problem(where="sbatch", what=what, fix="Change the keys of the section cluster."))
    # `ID` or `ID;CLUSTER`, after whatever the site's plugins say.
    return done.stdout.strip().splitlines()[-1].split(";")[0]


def states(jobs: Collection[str]) -> dict[str, str]:
    """Asks for the states of jobs, such as `PENDING` or `TIMEOUT`.

    Args:
        jobs: Ids, `42_3` for a task of an array.

    Returns:
        State by id. A job is absent when Slurm does not know it any more, keeps no accounts, or does not answer.
    """
    if not jobs:
        return {}
    # Jobs that ended stay in the queue's memory for some minutes, and in the accounts where a site keeps them.
    found = _rows(["squeue", "--noheader", "--me", "--array", "--states=all", "--format=%i|%T"])
    gone = ",".join(sorted(set(jobs) - found.keys()))
    if gone:
        accounts = ["sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State"]
        found |= _rows([*accounts, f"--jobs={gone}"])
    return {job: found[job] for job in jobs if job in found}


def _rows(argv: Sequence[str]) -> dict[str, str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return {}
    # `CANCELLED by 1000`
    return dict(re.findall(r"^(\d+(?:_\d+)?)\|([A-Z_]+)", done.stdout, re.MULTILINE)) if done.returncode == 0 else {}
