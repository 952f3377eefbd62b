"""Tells Hydra the defaults of every key, and names runs."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import datetime

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore

from tunerun.config import search, typed
from tunerun.config.schema import OptunaConfig, RunConfig

DEFAULT_SWEEPER = "tunerun_grid"
# Options of Hydra's group `hydra/sweeper`: the class of each, and its settings.
SWEEPERS: dict[str, tuple[str, OptunaConfig | None]] = {
    "tunerun_grid": ("hydra_plugins.tunerun.GridSweeper", None),
    "tunerun_optuna": ("hydra_plugins.tunerun.OptunaSweeper", OptunaConfig()),
}


def new_run_id() -> str:
    """Returns a name for a run directory: local time and four random hex digits, so that two runs never share one."""
    return f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def register() -> None:
    """Prepares Hydra for `compose` and `hydra.main`; doing it twice changes nothing."""
    search.install()
    store = ConfigStore.instance()
    store.store(name="schema", node=typed.plain(RunConfig()))
    for name, (target, settings) in SWEEPERS.items():
        node = {"_target_": target, **({} if settings is None else typed.plain(settings))}
        store.store(group="hydra/sweeper", name=name, node=node, provider="tunerun")
    # An `override hydra/sweeper` in the primary config would win over that of a recipe, so the default itself is ours.
    hydras = HydraConf()
    defaults = [{"sweeper": DEFAULT_SWEEPER} if entry == {"sweeper": "basic"} else entry for entry in hydras.defaults]
    store.store(group="hydra", name="config", node=replace(hydras, defaults=defaults), provider="tunerun")
