"""Tells Hydra the defaults of every key, and names runs."""

from __future__ import annotations

import secrets
from datetime import datetime

from hydra.core.config_store import ConfigStore

from tunerun.config import search, typed
from tunerun.config.schema import RunConfig


def new_run_id() -> str:
    """Returns a name for a run directory: local time and four random hex digits, so that two runs never share one."""
    return f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def register() -> None:
    """Prepares Hydra for `compose` and `hydra.main`; doing it twice changes nothing."""
    search.install()
    ConfigStore.instance().store(name="schema", node=typed.plain(RunConfig()))
