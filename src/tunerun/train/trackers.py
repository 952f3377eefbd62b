"""Where the numbers of training go: metrics.jsonl always, and what `track` asks for. None of them needs an account.

Trackers get numbers and the config. What a process prints may hold secrets, as may the changes and the remote's address
of the user's git repository, so none may collect these by itself; log and record keep them, redacted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tunerun import artifacts
from tunerun.config import typed
from tunerun.config.schema import TrackConfig
from tunerun.errors import require
from tunerun.plan.steps import TrainStep


class Tracker(Protocol):
    """Takes numbers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of a step."""

    def close(self) -> None:
        """Flushes."""


def open_trackers(step: TrainStep, out: Path, *, after_step: int) -> list[Tracker]:
    """Opens what the metrics of a training go to.

    Args:
        step: What to track with.
        out: The run directory.
        after_step: Step that training goes on from; numbers of later ones belong to work that was lost.

    Raises:
        MissingExtra: A tracker is not installed.
    """
    track, config = step.track, typed.plain(step)
    # One run directory is one run of a tracker; the recipe's name alone would put several under one.
    run = f"{step.name}-{out.name}"
    found: list[Tracker] = [JsonLines(out / artifacts.METRICS, after_step=after_step)]
    if track.tensorboard:
        found.append(TensorBoard(out / "tensorboard", after_step=after_step))
    if track.wandb:
        found.append(Wandb(out, track=track, name=step.name, config=config))
    if track.trackio:
        found.append(Trackio(project=track.project, name=run, config=config))
    if track.mlflow:
        found.append(Mlflow(out, project=track.project, name=run, config=config))
    if track.swanlab:
        found.append(Swanlab(out, project=track.project, name=run, config=config))
    return found


class JsonLines:
    """One JSON object a line, readable while training goes on."""

    def __init__(self, path: Path, *, after_step: int) -> None:
        """Opens the file; lines of steps after `after_step` belong to work that was lost, and go."""
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= after_step]
        artifacts.write_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Event files for TensorBoard."""

    def __init__(self, folder: Path, *, after_step: int) -> None:
        """Opens a writer.

        Raises:
            MissingExtra: tensorboard is not installed.
        """
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=after_step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a scalar for each number."""
        for name, value in _prefixed(values).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes to disk."""
        self._writer.close()


class Wandb:
    """A run on Weights & Biases; offline, in the run directory, when there is no key."""

    def __init__(self, folder: Path, *, track: TrackConfig, name: str, config: Mapping[str, Any]) -> None:
        """Starts a run.

        Raises:
            MissingExtra: wandb is not installed.
        """
        wandb: Any = require("wandb", "wandb")
        known = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ or wandb.api.api_key is not None
        self._run = wandb.init(
            dir=str(folder),
            project=track.project,
            group=track.group,
            name=name,
            config=dict(config),
            mode=None if known else "offline",
            settings=wandb.Settings(console="off", disable_git=True, save_code=False),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers."""
        self._run.log(_prefixed(values), step=step)

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


class Trackio:
    """A run in trackio's local store (`TRACKIO_DIR`), shown by `trackio show`; a resumed training goes on with it."""

    def __init__(self, *, project: str, name: str, config: Mapping[str, Any]) -> None:
        """Starts a run.

        Raises:
            MissingExtra: trackio is not installed.
        """
        trackio: Any = require("trackio", "trackio")
        self._run = trackio.init(project=project, name=name, config=dict(config), resume="allow", embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers."""
        self._run.log(_prefixed(values), step=step)

    def close(self) -> None:
        """Writes what is waiting."""
        self._run.finish()


class Mlflow:
    """A run of MLflow: where `MLFLOW_TRACKING_URI` says, or in a data base in the run directory."""

    def __init__(self, folder: Path, *, project: str, name: str, config: Mapping[str, Any]) -> None:
        """Starts a run.

        Raises:
            MissingExtra: mlflow is not installed.
        """
        require("mlflow", "mlflow")
        client_module: Any = require("mlflow.tracking", "mlflow")
        self._metric: Any = vars(require("mlflow.entities", "mlflow"))["Metric"]
        own = None if "MLFLOW_TRACKING_URI" in os.environ else f"sqlite:///{folder.absolute()}/mlflow.db"
        self._client = client_module.MlflowClient(own)
        known = self._client.get_experiment_by_name(project)
        experiment = self._client.create_experiment(project) if known is None else known.experiment_id
        self._run: str = self._client.create_run(experiment, run_name=name).info.run_id
        for key, value in typed.flatten(config).items():
            self._client.log_param(self._run, key, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in _prefixed(values).items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        """Ends the run."""
        self._client.set_terminated(self._run)


class Swanlab:
    """A run of SwanLab; offline, in the run directory, unless a key or a mode is set in the environment."""

    def __init__(self, folder: Path, *, project: str, name: str, config: Mapping[str, Any]) -> None:
        """Starts a run.

        Raises:
            MissingExtra: swanlab is not installed.
        """
        swanlab: Any = require("swanlab", "swanlab")
        known = "SWANLAB_MODE" in os.environ or "SWANLAB_API_KEY" in os.environ
        place = folder / "swanlab"
        place.mkdir(exist_ok=True)
        self._run = swanlab.init(
            log_dir=str(place),
            project=project,
            name=name,
            config=dict(config),
            mode=None if known else "offline",
            settings=swanlab.Settings(terminal={"proxy_type": "none"}, probe={"git": False}),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers."""
        self._run.log(_prefixed(values), step=step)

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


def _prefixed(values: Mapping[str, float]) -> dict[str, float]:
    return {f"train/{name}": value for name, value in values.items()}
