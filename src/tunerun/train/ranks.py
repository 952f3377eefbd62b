"""The processes that train together: which one this is, and how they agree.

What is agreed on travels through gloo on the hosts, apart from the gradients, so that no agreement waits for a GPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from tunerun.errors import FailedElsewhere, StageError, TunerunError
from tunerun.plan.placement import Placement

S = TypeVar("S")
T = TypeVar("T")

# A rank that is silent for longer is taken for dead by the others; loading and saving of large models come before.
_SILENCE = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process among those that train together."""

    rank: int = 0
    """Number of this process, from 0; rank 0 writes what belongs to all."""
    world: int = 1
    """Number of processes."""
    group: Any = None
    """Process group on the hosts; None for one process alone."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what belongs to all."""
        return self.rank == 0

    def numbers(self, values: Sequence[float]) -> list[list[float]]:
        """Returns the numbers of every rank, in the order of ranks; each rank gives as many."""
        if self.world == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.float64)
        found = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(found, mine, group=self.group)
        return [tensor.tolist() for tensor in found]

    def objects(self, value: T) -> list[T]:
        """Returns the values of every rank, in the order of ranks."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self.group)
        return found

    def deal(self, items: Sequence[S], action: Callable[[S], T]) -> list[T]:
        """Applies an action to items that are dealt out to the ranks, and returns what came of all of them, in order.

        Every rank acts as often, so that actions may compute with a model that the ranks share: some repeat the last.

        Args:
            items: At least one; the same on all ranks.
            action: Returns something that can be sent.
        """
        found: list[T] = []
        for number in range(self.rank, math.ceil(len(items) / self.world) * self.world, self.world):
            value = action(items[min(number, len(items) - 1)])
            if number < len(items):
                found.append(value)
        dealt = self.objects(found)
        return [dealt[number % self.world][number // self.world] for number in range(len(items))]

    def attempt(self, action: Callable[[], T]) -> T:
        """Does something on every rank; when it fails on one, all of them raise.

        Raises:
            TunerunError: As raised here, or FailedElsewhere with what another rank said.
            OSError: As raised here.
        """
        value, error = None, None
        try:
            value = action()
        except (TunerunError, OSError) as caught:
            error = caught
        told = self.objects(None if error is None else str(error))
        if error is not None:
            raise error
        for rank, message in enumerate(told):
            if message is not None:
                raise FailedElsewhere(f"rank {rank}: {message}")
        return value  # type: ignore[return-value]

    def wait(self) -> None:
        """Waits until every rank is here."""
        if self.world > 1:
            dist.barrier(group=self.group)


_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}

ALONE = Ranks()
"""One process."""


@contextmanager
def connected(placement: Placement) -> Iterator[Ranks]:
    """Joins the processes of a training within the block.

    They find each other by the variables that torchrun sets (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    Args:
        placement: How many there are, and on what they compute: gradients travel through gloo or NCCL.

    Raises:
        StageError: There are more or fewer processes than planned.
    """
    world, device = placement.world_size, placement.device
    if world == 1:
        with _alone(placement):
            yield ALONE
        return
    number, there = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if there != world:
        raise StageError(f"{there} processes were started, and the plan has {world}.")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(_BACKENDS[device], rank=number, world_size=world, timeout=_SILENCE)
    try:
        yield Ranks(number, world, dist.new_group(backend="gloo", timeout=_SILENCE))
    finally:
        dist.destroy_process_group()


@contextmanager
def _alone(placement: Placement) -> Iterator[None]:
    """Lets one process share out with itself: what it offloads goes through the same libraries as for several."""
    if placement.strategy in ("single", "ddp"):
        yield
        return
    # DeepSpeed asks for it.
    os.environ.setdefault("LOCAL_RANK", "0")
    dist.init_process_group(_BACKENDS[placement.device], store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
