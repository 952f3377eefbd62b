"""`tunerun chat TARGET ...`: talks to a run, a model folder, a GGUF file or a hub's model."""

from __future__ import annotations

from collections.abc import Sequence

from tunerun.serve.spawn import Spawned


def main(argv: Sequence[str]) -> int:
    """Starts a chat.

    Args:
        argv: The target, and the options that `tunerun chat --help` lists.

    Returns:
        The exit code.
    """
    words = list(argv)
    if not words or words[0].startswith("-"):
        return _talk(words, None)
    with Spawned() as spawned:
        return _talk(words, spawned)


def _talk(words: list[str], spawned: Spawned | None) -> int:
    # Imported here: the engine's process imports what it needs at the same time.
    from tunerun.commands import target
    from tunerun.serve import chat

    if spawned is not None:
        words[0] = str(target.local_path(words[0]))
    return chat.main(words, target.placement(), spawned)
