"""How the processes of a training share the model."""

from __future__ import annotations

from typing import Literal

Strategy = Literal["single", "ddp", "zero1", "zero2", "zero3", "fsdp2"]

ZERO_STAGES: dict[Strategy, int] = {"zero1": 1, "zero2": 2, "zero3": 3}
"""Strategies of DeepSpeed."""
SHARDED_STRATEGIES: tuple[Strategy, ...] = ("zero3", "fsdp2")
"""Strategies that share out the parameters."""
