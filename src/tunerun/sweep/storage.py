"""Where a search keeps its trials: a journal or a data base, which outlive a kill and which several machines share."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from tunerun import redact
from tunerun.errors import Problem, StageError, UserError
from tunerun.run.summary import short

JOURNAL = "search.journal"
_JOURNAL_SUFFIX = ".journal"
_SQLITE = "sqlite"
_WHERE = "hydra.sweeper.storage"
_PAUSES = (0.1, 0.3, 1.0)
"""Seconds between attempts to open a data base."""


def open_storage(name: str | None, sweep_dir: Path, *, create: bool) -> BaseStorage:
    """Opens a storage, which holds nothing when it is new.

    Args:
        name: Address of a data base, or a file that ends in `.journal`; None takes a journal in the sweep's folder.
        sweep_dir: Of the sweep.
        create: Whether to make it when it is not there; else nothing is written.

    Raises:
        UserError: It cannot be opened, is damaged, or is not there.
    """
    file = file_of(name, sweep_dir)
    if not create and file is not None and not file.is_file():
        raise UserError(Problem(where=_WHERE, what=f"{file} is not there.", fix="Name the one that the sweep had."))
    if file is None or not _is_journal(name):
        assert name is not None, "a data base has an address"
        return _data_base(name)
    return _journal(file, create=create)


@contextmanager
def telling(name: str | None, sweep_dir: Path) -> Iterator[None]:
    """Tells of a storage that was opened and breaks while it is used within the block.

    Args:
        name: As for `open_storage`.
        sweep_dir: Of the sweep.

    Raises:
        StageError: It cannot be read or written any more, or does not tell of the search any more.
    """
    try:
        yield
    except (OSError, ValueError, LookupError, RuntimeError, optuna.exceptions.OptunaError) as error:
        file = file_of(name, sweep_dir)
        where = str(file) if file is not None else redact.values(str(name), ())
        line = _first_bad_line(file.read_bytes()) if _is_journal(name) and file is not None and file.is_file() else None
        # Optuna's own error says nothing of what happened.
        cause = error.__cause__ or error
        why = error.strerror if isinstance(error, OSError) else str(cause).splitlines()[0].rstrip(".")
        what = f"{where} broke while the search was going on: {why if line is None else f'line {line} is no record'}."
        on = f"tunerun resume {short(sweep_dir)}"
        fix = f"Put it back as it was, and go on with {on}; sweep show and sweep best still work."
        raise StageError(str(Problem(where=_WHERE, what=what, fix=fix))) from error


def file_of(name: str | None, sweep_dir: Path) -> Path | None:
    """Returns the file of a storage; None for a data base that is reached over a network."""
    if name is None:
        return sweep_dir / JOURNAL
    if name.endswith(_JOURNAL_SUFFIX):
        return Path(name)
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        address = make_url(name)
    except ArgumentError:
        # What it lacks is told when it is opened.
        return None
    return Path(address.database) if address.get_backend_name() == _SQLITE and address.database else None


def _is_journal(name: str | None) -> bool:
    return name is None or name.endswith(_JOURNAL_SUFFIX)


def _journal(file: Path, *, create: bool) -> BaseStorage:
    try:
        if create:
            file.parent.mkdir(parents=True, exist_ok=True)
            _cut_half_a_line(file)
        return JournalStorage(JournalFileBackend(str(file)))
    except OSError as error:
        raise UserError(Problem(where=_WHERE, what=f"{file} cannot be opened: {error.strerror}.")) from error
    except Exception as error:
        # Whatever Optuna stumbles over: a line that is no JSON, or one that lacks what its operation needs.
        line = _first_bad_line(file.read_bytes())
        where = str(file) if line is None else f"{file}:{line}"
        what = "is damaged: it does not tell of a search any more, so that none goes on from it."
        fix = "Put a copy of it back, or start a new sweep; sweep show and sweep best still work."
        raise UserError(Problem(where=where, what=what, fix=fix)) from error


def _cut_half_a_line(file: Path) -> None:
    """Removes half a line at the end, which a writer left that was killed: the next line would be glued to it.

    Raises:
        ValueError: The file is no journal.
    """
    if not file.is_file() or _whole(file) == file.stat().st_size:
        return
    lock = JournalFileSymlinkLock(str(file))
    lock.acquire()
    try:
        # Another process may have been writing it.
        os.truncate(file, _whole(file))
    finally:
        lock.release()


def _whole(file: Path) -> int:
    """Returns how many bytes of a journal are whole lines.

    Raises:
        ValueError: It is no journal: there is no whole line, or one is no record.
    """
    content = file.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content) and (end == 0 or _first_bad_line(content[:end]) is not None):
        raise ValueError(f"{file} is no journal")
    return end


def _first_bad_line(content: bytes) -> int | None:
    """Returns the number, from 1, of the first line that is no record of Optuna's: JSON with an operation."""
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or "op_code" not in record:
                return number
        except ValueError:
            return number
    return None


def _data_base(address: str) -> BaseStorage:
    for pause in (*_PAUSES, None):
        try:
            return optuna.storages.get_storage(address)
        except Exception as error:
            # Whatever its driver raises: two processes may make the tables of a new one at a time, or the address is
            # wrong.
            if pause is None:
                what = f"{redact.values(address, ())} cannot be opened: {str(error).splitlines()[0].rstrip('.')}."
                fix = "Write FILE.journal, sqlite:////FOLDER/FILE.db or postgresql://USER@HOST/NAME."
                raise UserError(Problem(where=_WHERE, what=what, fix=fix)) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")
