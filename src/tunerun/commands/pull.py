"""`tunerun pull`: downloads a model, or goes on with a download."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from tunerun import paths
from tunerun.commands import arguments
from tunerun.errors import ExitCode, Problem, UserError

_LINE_SECONDS = 0.2
_HUBS: tuple[Literal["hf", "modelscope"], ...] = ("hf", "modelscope")


def main(argv: Sequence[str]) -> int:
    """Prints the folder of the model on the last line.

    Raises:
        UserError: The arguments name no model or no hub.
        StageError: The model cannot be downloaded.
    """
    options, rest = arguments.split(argv, flags=(), values=("--hub", "--revision", "--cache-dir"))
    if len(rest) != 1:
        raise UserError("pull takes one model: tunerun pull Qwen/Qwen2.5-0.5B-Instruct")
    model = rest[0]
    if not model or (paths.looks_local(model) and not Path(paths.resolve_asset(model)).expanduser().is_dir()):
        what = "is no hub id (org/name), and no folder."
        raise UserError(Problem(where=model or "''", what=what, fix="Example: Qwen/Qwen2.5-0.5B-Instruct"))
    named = options["--hub"][-1] if "--hub" in options else "hf"
    kinds = [kind for kind in _HUBS if kind == named]
    if not kinds:
        raise UserError(f"--hub: there is no hub {named!r}. Known: {', '.join(_HUBS)}.")

    from tunerun.models.fetch import fetch

    base = fetch(
        model,
        hub_kind=kinds[0],
        revision=options["--revision"][-1] if "--revision" in options else None,
        cache_dir=Path(options["--cache-dir"][-1]) if "--cache-dir" in options else None,
        make_bar=_TerminalBar,
    )
    if base.revision is not None:
        print(f"revision: {base.revision}")
    print(f"folder: {base.folder}")
    return ExitCode.DONE


class _TerminalBar:
    """One line on a terminal; nothing elsewhere."""

    def __init__(self, total: int) -> None:
        self._total, self._count = total, 0
        self._started = self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def advance(self, amount: int) -> None:
        """Adds bytes."""
        self._count += amount
        now = time.monotonic()
        if sys.stderr.isatty() and (now - self._last > _LINE_SECONDS or self._count == self._total):
            self._last = now
            speed = self._count / max(now - self._started, 1e-3) / 1e6
            line = f"{self._count / 1e6:,.0f} of {self._total / 1e6:,.0f} MB, {speed:.1f} MB/s"
            print(f"\rdownloading {line}   ", end="", file=sys.stderr, flush=True)
