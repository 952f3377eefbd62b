"""How many answers are computed at a time: each has a key-value cache, and their memory is bounded."""

from __future__ import annotations

MEMORY_BYTES = 1 << 30
"""Of all caches together, in the memory of the CPU."""

HALF_BYTES = 2
"""Of a number in llama.cpp's caches, which are float16."""

_MOST_SLOTS = 16


def slots(
    token_numbers: int, number_bytes: int, context_tokens: int, wanted: int | None, room_bytes: int = MEMORY_BYTES
) -> int:
    """Returns how many full contexts there is room for: at least one, and not more than share a processor well.

    Args:
        token_numbers: Numbers in the cache for each token; 0 for models whose state does not grow.
        number_bytes: Bytes of each number.
        context_tokens: Tokens of a context.
        wanted: Most answers that anybody asks for at a time; None when that is not known.
        room_bytes: Memory for all of them.
    """
    one = token_numbers * number_bytes * context_tokens
    most = _MOST_SLOTS if wanted is None else min(wanted, _MOST_SLOTS)
    return most if one == 0 else min(max(room_bytes // one, 1), most)
