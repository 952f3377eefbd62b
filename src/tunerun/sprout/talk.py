"""Families of one answer each: who the assistant is, and small talk."""

from __future__ import annotations

from tunerun.sprout.family import LANGUAGES, Family
from tunerun.sprout.tables import rows

_WEIGHTS = {"identity": 0.6, "small_talk": 0.3}


def talk_families() -> tuple[Family, ...]:
    """Returns one family for each row of the tables: its answer, the questions, and last the one held out."""
    return tuple(
        Family(
            name=name.replace("_", " "),
            language=language,
            items=({},),
            questions=tuple(taught),
            held_out=(held_out,),
            answer=answer,
            statements=(answer,),
            weight=weight,
        )
        for name, weight in _WEIGHTS.items()
        for language in LANGUAGES
        for answer, *taught, held_out in rows(f"{name}_{language}")
    )
