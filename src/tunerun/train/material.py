"""What training works with besides the network: the rows, their reference log-probabilities, the teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunerun import artifacts
from tunerun.base_model import BaseModel, read_teacher
from tunerun.chat.tokenizer import load_tokenizer
from tunerun.errors import Problem, UserError
from tunerun.formats.pairs import CHOSEN, REJECTED, PairStore, open_store
from tunerun.formats.tokens import LABELS, MANIFEST, OFFSETS, SEGMENTS, TOKENS, TRAINED, TokenStore
from tunerun.models import load
from tunerun.models.attention import SEGMENTS as SEGMENT_ATTENTION
from tunerun.plan.steps import TrainStep
from tunerun.train import batches, reference
from tunerun.train.fitting import Fitting
from tunerun.train.objectives import OBJECTIVES, kto
from tunerun.train.objectives.objective import Examples
from tunerun.train.ranks import Ranks


def content_sha256(folder: Path) -> str:
    """Returns a hash over the files of a store of any layout."""
    sides = [folder / CHOSEN, folder / REJECTED] if isinstance(open_store(folder), PairStore) else [folder]
    digest = hashlib.sha256(artifacts.sha256(folder / MANIFEST).encode())
    for side in sides:
        for name in (TOKENS, TRAINED, SEGMENTS, OFFSETS, LABELS):
            if name != LABELS or (side / name).is_file():
                digest.update(artifacts.sha256(side / name).encode())
    return digest.hexdigest()


def open_examples(step: TrainStep, folder: Path, *, held_out: bool = False) -> Examples:
    """Opens the rows of an objective.

    Args:
        step: What to train.
        folder: Holds a store.
        held_out: Whether the rows are measured only, all in one batch.

    Raises:
        StageError: The folder is not a complete store.
    """
    store = open_store(folder)
    if OBJECTIVES[step.objective.kind].kl is None:
        return Examples(store=store)
    order = list(range(len(store))) if held_out else batches.epoch_order(len(store), step.seed, 0).tolist()
    size = len(order) if held_out else step.train.global_batch_size
    return Examples(store=store, partners=kto.partners(order, size))


def largest_token(examples: Examples) -> int:
    """Returns the largest token id of the rows."""
    store = examples.store
    sides: list[TokenStore] = [store.chosen, store.rejected] if isinstance(store, PairStore) else [store]
    return max(int(side.tokens.max()) for side in sides)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceSource:
    """What reference log-probabilities are computed by."""

    fitting: Fitting
    """How much is computed at a time."""
    run: Callable[[Callable[[Any], Any]], Any]
    """Applies a function to the network as it is before the first step."""
    ranks: Ranks


def add_reference(source: ReferenceSource, examples: Examples, path: Path, identity: Mapping[str, Any]) -> Examples:
    """Adds the reference log-probabilities, if the objective needs them: from their file, or computed and kept there.

    Args:
        source: What computes them.
        examples: The rows.
        path: The file.
        identity: What the numbers depend on.
    """
    fitting, ranks = source.fitting, source.ranks
    objective, device = OBJECTIVES[fitting.step.objective.kind], fitting.step.placement.device
    if objective.reference is None:
        return examples
    key = reference.key_of(identity)
    found = reference.read(path, key)
    # A rank may see the file of another one's making later than the others.
    if not all(ranks.objects(found is not None)):

        def compute() -> dict[str, Tensor]:
            size = fitting.now.micro_batch_size
            return reference.compute(source.run, objective, examples, batch_size=size, device=device, ranks=ranks)

        computed = fitting.forward(compute)
        ranks.attempt(lambda: reference.write(path, key, computed) if ranks.is_first else None)
        found = computed
    assert found is not None
    return replace(examples, reference=found)


def load_teacher(step: TrainStep, base: BaseModel, out: Path) -> Any:
    """Loads the frozen model that distill imitates; None for other objectives.

    Raises:
        UserError: Its tokenizer is not that of the base model.
        StageError: Its weights are damaged.
    """
    if step.objective.kind != "distill":
        return None
    teacher = read_teacher(out)
    tokens = [load_tokenizer(model.folder).backend.get_vocab(with_added_tokens=True) for model in (teacher, base)]
    if tokens[0] != tokens[1]:
        what = f"{teacher.path} has another tokenizer than {base.path}: their tokens cannot be compared."
        raise UserError(Problem(where="objective.teacher", what=what, fix="Choose a teacher of the same family."))
    network = load.load_model(
        teacher.folder,
        dtype=torch.bfloat16 if step.placement.precision == "bf16" else torch.float32,
        device=step.placement.device,
        attention=SEGMENT_ATTENTION,
        trust_remote_code=step.model.trust_remote_code,
    )
    return network.requires_grad_(False)
