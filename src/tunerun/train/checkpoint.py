"""Checkpoints that are complete or absent: staged, flushed, hashed, renamed, and verified before use.

    step-40/
        adapter/ or model/       loadable as they are, in the precision that is trained (float32): what answered and was
                             measured, with train.ema_decay the running average of the weights
        optimiser.safetensors    the optimiser's tensors by parameter; optimiser.json has its numbers. Of several ranks,
                             optimiser-0-of-2.safetensors and so on: each writes those of some parameters, whole, so
                             that any number of ranks under any strategy can go on
        moving.safetensors       with train.ema_decay, the weights that training goes on with, by parameter
        answers.jsonl            answers to eval.prompts
        manifest.json            step, what it belongs to, and the sha256 of every other file; written last

Random numbers need no state: dropout and noise are seeded by (seed, step), the order of the data by (seed, epoch).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tunerun import artifacts
from tunerun.config.schema import TrainConfig
from tunerun.errors import Problem, StageError, UserError
from tunerun.formats.checkpoints import MANIFEST, MOVING, fault, renew, write_manifest
from tunerun.plan import step_keys
from tunerun.train import ema
from tunerun.train.ema import Average
from tunerun.train.engines import Engine
from tunerun.train.engines.engine import State
from tunerun.train.ranks import ALONE, Ranks

OPTIMISER = "optimiser"
ANSWERS = "answers.jsonl"
_PREFIX = artifacts.CHECKPOINT_PREFIX
# What a file system takes besides the bytes of tensors: headers, JSON, blocks.
_SPARE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Progressed:
    """How far training has come."""

    step: int = 0
    """Optimiser steps done."""
    tokens: int = 0
    """Tokens computed."""
    trained_tokens: int = 0
    """Tokens the loss was taken over."""
    seconds: float = 0.0
    """Time spent in steps, over all processes that worked on it."""
    first_loss: float | None = None
    """Loss of the first step."""
    last_loss: float | None = None
    """Loss of the last step done."""
    best_step: int | None = None
    """Step with the best `train.best_metric` so far."""
    best_value: float | None = None
    """Its value."""
    evals_since_best: int = 0
    """Measurements of the held-out rows since then."""
    skipped_steps: tuple[int, ...] = ()
    """Steps whose loss or gradients were not finite and moved no weight, from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    progress: Progressed
    identity: Mapping[str, Any]
    """What it belongs to: step choices, data and base model by dotted key."""
    files: tuple[str, ...]
    """Names of its files."""

    def state_files(self, ending: str) -> list[str]:
        """Returns the names of the optimiser's files with an ending, one for each rank that wrote them."""
        return sorted(name for name in self.files if name.startswith(OPTIMISER) and name.endswith(ending))


def write(
    folder: Path,
    progress: Progressed,
    *,
    identity: Mapping[str, Any],
    fill: Callable[[Path], None],
    needed_bytes: int,
    train: TrainConfig,
    ranks: Ranks,
) -> Path:
    """Publishes a checkpoint, then removes the oldest beyond those that are to be kept.

    All ranks call it: each writes its share into the staging folder of the first one, which publishes it when all have.

    Args:
        folder: The run's checkpoints.
        progress: Where training stands.
        identity: What the checkpoint belongs to.
        fill: Writes this rank's share of weights and state into a staging folder; waits for no other rank.
        needed_bytes: About what that takes.
        train: How many are kept, and which are due.
        ranks: This process among those that train.

    Returns:
        The published folder.

    Raises:
        StageError: There is too little space, or it could not be written; older checkpoints stay as they were.
        OSError: As before, when the system says why.
    """
    target = folder / f"{_PREFIX}{progress.step}"
    ranks.attempt(lambda: _begin(folder, progress.step, needed_bytes) if ranks.is_first else None)
    with artifacts.publish(target) if ranks.is_first else nullcontext(target) as own:
        staging = Path(ranks.objects(str(own))[0])
        ranks.attempt(lambda: staging.mkdir() if ranks.is_first else None)
        ranks.attempt(lambda: _fill(staging, fill))
        # A shared disk may show a rank its own files before those of others.
        names = sorted(set().union(*ranks.objects(_names(staging))))
        hashed = ranks.attempt(lambda: _hash_share(staging, names, ranks))
        files = dict(sorted(item for found in ranks.objects(hashed) for item in found.items()))
        if ranks.is_first:
            write_manifest(staging, {"progress": asdict(progress), "identity": dict(identity), "files": files})
    if ranks.is_first:
        _rotate(folder, progress, train)
    ranks.wait()
    return target


def save_state(staging: Path, state: State, moving: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Writes what training needs besides the weights that are used into a staging folder.

    Args:
        staging: The folder.
        state: This rank's share of the optimiser's state.
        moving: The weights that training goes on with, where others are used; written by the first rank.
        ranks: This process among those that train.
    """
    share = "" if ranks.world == 1 else f"-{ranks.rank}-of-{ranks.world}"
    save_file(dict(state.tensors), staging / f"{OPTIMISER}{share}.safetensors")
    artifacts.write_json(staging / f"{OPTIMISER}{share}.json", {"schema": 1, "numbers": state.numbers})
    if moving and ranks.is_first:
        save_file({name: weight.contiguous() for name, weight in moving.items()}, staging / MOVING)


def restore_state(checkpoint: Checkpoint, engine: Engine, average: Average | None) -> None:
    """Gives parameters, average and optimiser the state of a checkpoint, whatever number of ranks wrote it.

    The parameters have the weights of its adapter/ or model/. An average that was turned off since then (`--allow
    train.ema_decay`) is forgotten.
    """
    # Those of adapter/ or model/: the average itself, or what one begins with that was turned on since then.
    ema.restore(average, engine.parameters)
    if MOVING in checkpoint.files:
        engine.assign(load_file(checkpoint.folder / MOVING))
    tensors: dict[str, Tensor] = {}
    for name in checkpoint.state_files(".safetensors"):
        tensors.update(load_file(checkpoint.folder / name))
    numbers: dict[str, int | float] = {}
    # Schema 1 knew only AdamW, which keeps no numbers, and had no file for them.
    for name in checkpoint.state_files(".json"):
        numbers.update(artifacts.read_json(checkpoint.folder / name)["numbers"])
    engine.restore(State(tensors=tensors, numbers=numbers))


def state_bytes(weights: Mapping[str, Tensor], state: State, moving: Mapping[str, Tensor]) -> int:
    """Returns about what a checkpoint takes on disk: both kinds of weights, and the optimiser state of this rank."""
    return sum(tensor.numel() * 4 for tensor in weights.values()) + sum(
        tensor.nbytes for tensor in (*state.tensors.values(), *moving.values())
    )


def is_due(progress: Progressed, train: TrainConfig) -> bool:
    """Says whether a checkpoint is to be written: every so many steps, and where training has been best so far."""
    is_best = train.keep_best and progress.best_step == progress.step
    return is_best or (train.checkpoint_steps is not None and progress.step % train.checkpoint_steps == 0)


def newest(folder: Path, ranks: Ranks = ALONE, *, due: TrainConfig | None = None) -> Checkpoint | None:
    """Returns the newest checkpoint that is whole, as the first rank finds; says on stderr why newer ones are not.

    Args:
        folder: The run's checkpoints.
        ranks: This process among those that train.
        due: Passes over those that a signal or a lack of memory made: an undisturbed training does not have them.
    """
    whole = (
        number
        for number in _numbers(folder)
        if _is_whole(folder, number) and (due is None or is_due(_open(folder, number).progress, due))
    )
    number = ranks.objects(ranks.attempt(lambda: next(whole, None) if ranks.is_first else None))[0]
    return None if number is None else _open(folder, number)


def read(folder: Path, number: int, ranks: Ranks = ALONE) -> Checkpoint | None:
    """Returns the checkpoint of a step when it is whole, as the first rank finds; it says on stderr what is wrong."""
    whole = ranks.objects(ranks.attempt(lambda: ranks.is_first and _is_whole(folder, number)))[0]
    return _open(folder, number) if whole else None


def is_there(folder: Path, number: int) -> bool:
    """Says whether a checkpoint of a step was published."""
    return (folder / f"{_PREFIX}{number}").is_dir()


def _is_whole(folder: Path, number: int) -> bool:
    name = f"{_PREFIX}{number}"
    found = fault(folder / name)
    if found is not None:
        print(f"checkpoint {name} is not used: {found}", file=sys.stderr)
        return False
    renew(folder / name)
    return True


def _open(folder: Path, number: int) -> Checkpoint:
    path = folder / f"{_PREFIX}{number}"
    manifest = artifacts.read_json(path / MANIFEST)
    found = manifest["progress"]
    skipped = tuple(found.pop("skipped_steps", ()))
    if "best_loss" in found:
        # Schema 2 compared by nothing else.
        found["best_value"] = found.pop("best_loss")
    progress = Progressed(**found, skipped_steps=skipped)
    files = tuple(sorted(manifest["files"]))
    return Checkpoint(folder=path, progress=progress, identity=manifest["identity"], files=files)


def check_identity(checkpoint: Checkpoint, identity: Mapping[str, Any], allow: Collection[str] = ()) -> tuple[str, ...]:
    """Compares what a checkpoint belongs to with the training that is to go on from it.

    Args:
        checkpoint: Where training would go on.
        identity: Of the training now.
        allow: Keys, or sections of keys, that may differ.

    Returns:
        Why the result will not be that of an uninterrupted training; nothing when it will be, to the bit.

    Raises:
        UserError: Names every key that differs and decides what is learned.
    """
    refused: dict[str, Problem] = {}
    inexact: dict[str, str] = {}
    # Fields that the plan derives come first: where the user's key changed too, its own values are shown.
    for key in sorted({*identity, *checkpoint.identity}, key=lambda key: (step_keys.user_key(key) == key, key)):
        before, now = (values.get(key) for values in (checkpoint.identity, identity))
        if before == now or (key not in checkpoint.identity and step_keys.is_new(key, now)):
            continue
        shown = step_keys.user_key(key)
        if step_keys.changes_only_bits(key) or step_keys.is_allowed(shown, allow):
            inexact[shown] = f"{shown} was {before} and is {now} now"
        else:
            what = f"{checkpoint.folder} was made with {before!r}; now it is {now!r}."
            fix = "Set it back to go on, train anew in another run_dir, or go on all the same: "
            fix += f"tunerun resume RUN [key=value] --allow {shown.partition(' ')[0]}"
            refused[shown] = Problem(where=shown, what=what, fix=fix)
    if refused:
        raise UserError(refused[key] for key in sorted(refused))
    return tuple(inexact[key] for key in sorted(inexact))


def _begin(folder: Path, step: int, needed_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _check_space(folder, step, needed_bytes + _SPARE_BYTES)


def _fill(staging: Path, fill: Callable[[Path], None]) -> None:
    try:
        fill(staging)
    except SafetensorError as error:
        name = staging.name.removeprefix(".").partition(".partial")[0]
        raise StageError(f"checkpoint {name} could not be written: {error}") from error


def _hash_share(staging: Path, names: Sequence[str], ranks: Ranks) -> dict[str, str]:
    """Hashes this rank's share of the files of all ranks, by name."""
    return {name: artifacts.sha256(staging / name) for name in names[ranks.rank :: ranks.world]}


def _names(staging: Path) -> set[str]:
    return {path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()}


def _check_space(folder: Path, step: int, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise StageError(
            f"checkpoint {_PREFIX}{step} takes about {needed_bytes:,} bytes, and {folder} has {free_bytes:,} free. "
            "Older checkpoints are as they were. Free some space, then: tunerun resume RUN"
        )


def _rotate(folder: Path, progress: Progressed, train: TrainConfig) -> None:
    """Removes what is beyond the newest `train.keep_checkpoints`, the one just written being the newest.

    The best one stays, and the newest that was due, to which a rollback goes. A checkpoint of a later step can only be
    a damaged one that was passed over: it must not push out a good one.
    """
    numbers = _numbers(folder)
    older = [number for number in numbers if number <= progress.step]
    kept = {*older[: max(1, train.keep_checkpoints)], progress.best_step}
    kept.add(next((number for number in older if _was_due(folder, number, train)), None))
    for number in {*numbers} - kept:
        shutil.rmtree(folder / f"{_PREFIX}{number}")


def _was_due(folder: Path, number: int, train: TrainConfig) -> bool:
    try:
        return is_due(_open(folder, number).progress, train)
    except (OSError, ValueError, KeyError, TypeError):
        # Its manifest is damaged; whether its other files are takes too long to see.
        return False


def _numbers(folder: Path) -> list[int]:
    names = (path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)
