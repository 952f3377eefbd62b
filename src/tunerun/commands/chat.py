"""`tunerun chat TARGET ...`: talks to a run, a model folder, a GGUF file or a hub's model."""

from __future__ import annotations

from collections.abc import Sequence

from tunerun.commands import target
from tunerun.serve import chat


def main(argv: Sequence[str]) -> int:
    """Starts a chat.

    Args:
        argv: The target, and the options that `tunerun chat --help` lists.

    Returns:
        The exit code.
    """
    words = list(argv)
    if words and not words[0].startswith("-"):
        words[0] = str(target.local_path(words[0]))
    return chat.main(words, target.placement())
