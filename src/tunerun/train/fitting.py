"""Finds what fits into memory while training: after out-of-memory the same work is done again in smaller pieces.

The loss of a step is divided by counts of its whole global batch, so that smaller micro-batches give the same gradients
up to rounding. What was found is kept in fitting.json, by step: a training that goes on, or is replayed, cuts every
step as it was cut before, and comes to the same bits.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from tunerun import artifacts, fits
from tunerun.config.schema import ADAPTER_METHODS
from tunerun.errors import StageError, TryAgain
from tunerun.fits import Fit
from tunerun.plan.steps import TrainStep
from tunerun.train.ranks import Ranks

# What plain RuntimeErrors of torch and the libraries below it say; on a CPU, Linux and Windows differ.
_TOLD = (
    "out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_ASKED = re.compile(r"tried to allocate ([\d.]+) (bytes|[KMG]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
# Where the plan's micro-batch comes from; that itself counts.
_PLANNED_FROM = ("train.micro_batch_size", "train.activation_checkpointing")

_T = TypeVar("_T")


class OutOfMemory(StageError):  # noqa: N818 (a state, like errors.Preempted)
    """Not even the smallest piece fits; weights and optimiser are as they were before it."""


@dataclass(kw_only=True, slots=True)
class Fitting:
    """How much a training computes at a time."""

    step: TrainStep
    network: Any
    """The transformers model, whose activations may have to be computed twice."""
    run_dir: Path
    """Has fitting.json when memory ran out."""
    key: str
    """Of the training that the file belongs to."""
    found: tuple[Fit, ...]
    """As planned, and then what was found, in order."""
    now: Fit
    """Of the step that is computed."""

    def begin(self, step: int) -> None:
        """Sets `now` to what a step is computed with.

        Args:
            step: Number of the step, from 1; 0 is what comes before the first.
        """
        fit = [fit for fit in self.found if fit.step <= step][-1]
        # Evaluation is no part of what is trained: the user may have lowered its batch since.
        self.now = replace(fit, step=step, eval_batch_size=min(fit.eval_batch_size, self.step.eval.batch_size))
        if fit.activation_checkpointing and not self.network.is_gradient_checkpointing:
            self.network.gradient_checkpointing_enable({"use_reentrant": False})

    def gradients(self, work: Callable[[], _T]) -> _T:
        """Computes gradients in micro-batches of `now`, which shrinks until they fit.

        Args:
            work: Starts anew each time it is called.

        Raises:
            OutOfMemory: One row at a time does not fit, its activations computed twice where the model can.
        """
        recomputes = bool(self.network.supports_gradient_checkpointing)
        return self._attempt(work, lambda now: smaller(now, rows=self._rows, recomputes=recomputes))

    def forward(self, work: Callable[[], _T]) -> _T:
        """Computes without gradients in micro-batches of `now`, which shrinks until they fit.

        Args:
            work: Starts anew each time it is called.

        Raises:
            OutOfMemory: One row at a time does not fit.
        """
        return self._attempt(work, lambda now: smaller(now, rows=self._rows, recomputes=False))

    def measure(self, work: Callable[[], _T]) -> _T:
        """Measures or answers as much at a time as `now` says, which shrinks until it fits.

        Args:
            work: Starts anew each time it is called.

        Raises:
            OutOfMemory: One at a time does not fit.
        """
        return self._attempt(work, _smaller_measure)

    @property
    def _rows(self) -> int:
        return self.step.train.global_batch_size // self.step.placement.world_size

    def _attempt(self, work: Callable[[], _T], shrink: Callable[[Fit], Fit | None]) -> _T:
        training = self.network.training
        while True:
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                told = str(error)
            # The error is gone by now, and with it the frames that held the tensors of the failed attempt.
            self.network.zero_grad(set_to_none=True)
            self.network.train(training)
            _release(self.step.placement.device)
            less = shrink(self.now)
            where = f"in step {self.now.step}" if self.now.step else "before the first step"
            if less is None:
                raise OutOfMemory(too_large(self.step, told, f"{where} with one row at a time"))
            # Noted before anything is computed with it: a process that is killed then goes on alike.
            self.found = (*self.found, less)
            fits.write(self.run_dir, self.key, self.found)
            if self.step.placement.strategy != "single":
                # Other ranks wait in the middle of the step, for what this one has not computed.
                raise TryAgain(f"out of memory {where}: going on with {self._told(less)}")
            print(f"out of memory {where}: going on with {self._told(less)}")
            self.begin(less.step)

    def _told(self, less: Fit) -> str:
        now, kept = self.now, f"the global batch stays {self.step.train.global_batch_size}"
        if less.eval_batch_size != now.eval_batch_size:
            return f"{less.eval_batch_size} in place of {now.eval_batch_size} (eval.batch_size)"
        if less.micro_batch_size != now.micro_batch_size:
            return f"micro-batch {less.micro_batch_size} in place of {now.micro_batch_size}; {kept}"
        return "activations computed twice (train.activation_checkpointing)"


def smaller(now: Fit, *, rows: int, recomputes: bool) -> Fit | None:
    """Decides what to try when a micro-batch was too large: half of it, and then activations computed twice.

    A function of its arguments alone, so that processes that know what failed agree on what follows.

    Args:
        now: What does not fit.
        rows: That a process computes in a step: micro-batches divide them.
        recomputes: Whether computing activations twice could help.

    Returns:
        None when nothing is left to try.
    """
    if now.micro_batch_size > 1:
        size = next(size for size in range(now.micro_batch_size // 2, 0, -1) if rows % size == 0)
        return replace(now, micro_batch_size=size)
    return replace(now, activation_checkpointing=True) if recomputes and not now.activation_checkpointing else None


def _smaller_measure(now: Fit) -> Fit | None:
    return replace(now, eval_batch_size=now.eval_batch_size // 2) if now.eval_batch_size > 1 else None


def open_fitting(step: TrainStep, out: Path, identity: Mapping[str, Any], network: Any, ranks: Ranks) -> Fitting:
    """Starts from what the plan says, or from what this run, or the one that it replays, found.

    Args:
        step: What to train and how.
        out: The run directory.
        identity: What the training is, by dotted key.
        network: The transformers model.
        ranks: This process among those that train.

    Raises:
        StageError: fitting.json is damaged.
    """
    key = _key(identity)
    planned = Fit(
        step=0,
        micro_batch_size=step.micro_batch_size,
        activation_checkpointing=step.activation_checkpointing,
        eval_batch_size=step.eval.batch_size,
    )
    found = fits.read(out, key)
    # No rank may write it while another one still reads.
    ranks.wait()
    if found and ranks.is_first:
        last = found[-1]
        print(f"memory ran out before: micro-batch {last.micro_batch_size} from step {last.step} on (fitting.json)")
    if not found:
        found = step.fits
        if found and ranks.is_first:
            fits.write(out, key, found)
        elif ranks.is_first:
            # That of another training must not be published with the results of this one.
            (out / artifacts.FITTING).unlink(missing_ok=True)
    # No rank is to fail, and to write, while another one still reads.
    ranks.wait()
    fitting = Fitting(step=step, network=network, run_dir=out, key=key, found=found or (planned,), now=planned)
    fitting.begin(0)
    return fitting


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error of torch or Python means that there was no memory, of a GPU or of the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TOLD)


@contextmanager
def explained(step: TrainStep) -> Iterator[None]:
    """Turns out-of-memory in work that is not cut, such as loading weights, into an error that says what helps.

    Raises:
        StageError: There was no memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise StageError(too_large(step, str(error), "for weights, gradients and optimiser")) from error


def too_large(step: TrainStep, told: str, where: str) -> str:
    """Returns what a user is told when training does not fit: where, how much there is, and what helps.

    Args:
        step: What to train and how.
        told: By the allocator.
        where: In the training.
    """
    asked, facts = _ASKED.search(told), ""
    if asked is not None:
        facts = f": {_size(float(asked[1]) * _UNITS[asked[2].lower()])} more were asked for"
    if step.placement.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        most = torch.cuda.max_memory_allocated()
        facts += f"; the GPU has {_size(total)}, {_size(free)} of it free, and training held up to {_size(most)}"
    return f"out of memory {where}{facts}. What helps: {', '.join(_fixes(step))}."


def _fixes(step: TrainStep) -> list[str]:
    method, placement = step.method.kind, step.placement
    fixes = ["a lower data.max_length"]
    if method not in ADAPTER_METHODS:
        fixes += ["method=lora", "train.optimizer=adamw_8bit"]
    if placement.device == "cuda":
        if method != "qlora" and step.objective.kind != "reward":
            fixes.append("method=qlora")
        if placement.strategy not in ("zero3", "fsdp2"):
            fixes.append("hardware=zero3 on several GPUs")
        elif not placement.offload:
            fixes.append(f"hardware={placement.strategy}_offload")
    return [*fixes, "a smaller model"]


def _key(identity: Mapping[str, Any]) -> str:
    """Returns a hash of what decides how much fits; of the model, that is what it contains."""

    def counts(name: str) -> bool:
        return name not in _PLANNED_FROM and (not name.startswith("model.") or name.endswith("(content)"))

    kept = {name: value for name, value in identity.items() if counts(name)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _release(device: str) -> None:
    # Modules and autograd graphs can hold each other in circles.
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    elif hasattr(ctypes.pythonapi, "malloc_trim"):
        # glibc keeps what was freed, in pieces that larger ones do not fit into.
        ctypes.pythonapi.malloc_trim(0)


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 1 << 30 else f"{count / 2**20:,.1f} MiB"
