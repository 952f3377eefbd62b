"""Numbers of a step on their way from the device to the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def read(values: Sequence[Tensor | float], device: str) -> Callable[[], list[float]]:
    """Starts to copy numbers to the host, without waiting for the device.

    Args:
        values: Scalars.
        device: Where they are computed.

    Returns:
        Waits for what was asked of the device before this call, not for what was asked since, and returns the numbers.
    """
    scalars = [torch.as_tensor(value).detach().to(device, torch.float32, non_blocking=True) for value in values]
    numbers = torch.stack(scalars)
    if device == "cpu":
        return numbers.tolist
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> list[float]:
        copied.synchronize()
        return host.tolist()

    return wait
