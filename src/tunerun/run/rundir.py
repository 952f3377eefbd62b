"""The run directory as a place to work in: lock, left-overs, config and plan."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tunerun import artifacts, redact
from tunerun.config import typed
from tunerun.config.schema import RunConfig, ServeConfig
from tunerun.errors import Problem, UserError
from tunerun.plan.accelerate import launch_files
from tunerun.plan.steps import TrainStep

LOCK = ".lock"
# Who asks whether a run directory is busy holds its lock himself, for a moment.
_LOOKS = (0.01, 0.05, 0.2)
"""Seconds between attempts to take it."""
# The one in C is ten times as fast; a PyYAML without it is rare.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@contextlib.contextmanager
def locked(run_dir: Path, *, wait: bool = False) -> Iterator[int]:
    """Makes a run directory and holds its lock.

    Args:
        run_dir: Of a run, or of a sweep whose tables are written.
        wait: Whether to wait for a process that holds it.

    Yields:
        The lock's descriptor. A process that inherits it holds the lock too, as long as it lives.

    Raises:
        UserError: Another process is at work in it, or the directory cannot be made.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(Problem(where="run_dir", what=f"{run_dir} cannot be written: {error.strerror}.")) from error
    try:
        if not _taken(descriptor, wait=wait):
            raise UserError(_busy(run_dir, os.pread(descriptor, 32, 0).decode().strip()))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _taken(descriptor: int, *, wait: bool) -> bool:
    """Takes a lock; says whether that was possible."""
    if wait:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    for pause in (*_LOOKS, None):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if pause is not None:
                time.sleep(pause)
        else:
            return True
    return False


def is_busy(run_dir: Path) -> bool:
    """Returns whether a process is at work in a run directory."""
    path = run_dir / LOCK
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def remove_leftovers(run_dir: Path) -> None:
    """Removes staging files of a run that was killed while it wrote; only the holder of the lock may."""
    for pattern in (".*.partial-*", ".*.old-*"):
        for path in list(run_dir.rglob(pattern)):
            remove(path)


def remove(path: Path) -> None:
    """Removes a file or a folder, when it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_launch(run_dir: Path, step: TrainStep) -> None:
    """Writes what the processes are told, for people and for starting them by hand: launch/."""
    for name, config in launch_files(step).items():
        file = run_dir / artifacts.LAUNCH / name
        if file.suffix == ".json":
            artifacts.write_json(file, config)
        else:
            artifacts.write_text(file, yaml.safe_dump(dict(config), sort_keys=False))


def write_config(run_dir: Path, config: RunConfig, secrets: tuple[str, ...]) -> None:
    """Writes the resolved config as config.yaml, without secrets."""
    text = yaml.safe_dump(redact.data(typed.plain(config), secrets), sort_keys=False, allow_unicode=True, width=100)
    artifacts.write_text(run_dir / artifacts.CONFIG, text)


def load_config(run_dir: Path) -> RunConfig:
    """Reads the resolved config of a run.

    Raises:
        UserError: There is none, or it does not fit this version's schema, or it lost a secret.
    """
    path, data = _read_config(run_dir)
    config, problems = typed.build(RunConfig, data)
    problems += _lost_secrets(data, path)
    if config is None or problems:
        raise UserError(problems)
    return config


def load_serve(run_dir: Path) -> ServeConfig:
    """Reads how a run is served, whatever other sections of its config hold.

    Raises:
        UserError: There is no config, or its section does not fit this version's schema.
    """
    path, data = _read_config(run_dir)
    config, problems = typed.build(RunConfig, {key: value for key, value in data.items() if key == "serve"})
    if config is None or problems:
        raise UserError(replace(item, where=f"{path}: {item.where}") for item in problems)
    return config.serve


def _lost_secrets(data: Mapping[str, Any], path: Path) -> list[Problem]:
    return [
        Problem(where=key, what=f"was {redact.MARK} when {path} was written.", fix=f"Give it again: {key}=...")
        for key, value in typed.flatten(data).items()
        if isinstance(value, str) and redact.MARK in value
    ]


def _read_config(run_dir: Path) -> tuple[Path, Any]:
    path = run_dir / artifacts.CONFIG
    if not path.is_file():
        what = f"is not the directory of a run: {f'no {artifacts.CONFIG}' if run_dir.is_dir() else 'it is not there'}."
        raise UserError(Problem(where=str(run_dir), what=what, fix="`tunerun runs` lists the runs."))
    try:
        data: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except yaml.YAMLError as error:
        raise UserError(Problem(where=str(path), what=f"is not YAML: {error}")) from error
    if not isinstance(data, dict):
        raise UserError(Problem(where=str(path), what="is not a mapping of sections."))
    return path, data


def _busy(run_dir: Path, process: str) -> Problem:
    what = f"{run_dir} is being worked in by process {process or '?'}, or by a stage that it started."
    return Problem(where="run_dir", what=what, fix="Wait for it to end, or choose another run_dir.")


def clean_logs_of_ranks(run_dir: Path, stage: str, secrets: tuple[str, ...]) -> None:
    """Takes secrets out of what ranks after the first wrote into logs of their own, past the runner.

    Args:
        run_dir: The run directory.
        stage: Of the ranks.
        secrets: Values that must not appear, from `redact.secret_values`.
    """
    for log in (run_dir / artifacts.LOGS).glob(f"{stage}-rank*.log"):
        clean = redact.Lines(secrets)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        artifacts.write_text(log, "".join(f"{clean(line)}\n" for line in lines))


def overlap(first: str, second: str) -> bool:
    """Says whether two paths of a run directory are the same, or one is within the other."""
    return first == second or first.startswith(second + "/") or second.startswith(first + "/")
