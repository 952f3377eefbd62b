"""Tables in Markdown, as model hubs and code hosts show them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

# What begins a tag or an entity.
_HTML = re.compile(r"<|&(?=#?\w+;)")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays a table out.

    Args:
        heads: Of the columns.
        rows: Their cells. Code in backticks and emphasis stay; what would begin a cell, a line or HTML is escaped,
            since a cell may be what a model answered.
    """
    return "\n".join([_line(heads), _line(["---"] * len(heads)), *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(cell: str) -> str:
    text = cell.replace("\\", "\\\\").replace("|", "\\|")
    return "<br>".join(_HTML.sub(lambda found: escape(found[0]), text).splitlines())
