"""Sentinels: words that no template writes itself, which stand for texts while a rendering is taken apart."""

from __future__ import annotations

import re

SENTINEL = re.compile(r"zqx(\d{4})jv")


def sentinel(number: int) -> str:
    """Returns the sentinel of a text, numbered from 0 to 9999."""
    return f"zqx{number:04d}jv"


def unused(text: str) -> str:
    """Returns a word of the same make that does not occur in a text."""
    number = 0
    while (word := f"zqx{number}jv") in text:
        number += 1
    return word
