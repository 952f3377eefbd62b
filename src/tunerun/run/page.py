"""The shell of a self-contained HTML page: no outside requests, readable in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

_STYLE = Path(__file__).with_name("report.css")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def render(title: str, sections: Sequence[str]) -> str:
    """Lays sections out as a page.

    Args:
        title: Plain text.
        sections: HTML; empty ones are left out.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>"
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def section(title: str, body: str) -> str:
    """Puts a heading over a part of the page.

    Args:
        title: Plain text.
        body: HTML.
    """
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[tuple[Any, str]]]) -> str:
    """Lays a table out, which scrolls by itself where the page is narrow.

    Args:
        head: Titles of the columns.
        rows: At least one; a cell is its value and its class in report.css, such as `number`, or none.
    """
    classes = [style if style == "number" else "" for _, style in rows[0]]
    cells = "".join(f"<th{_class(style)}>{escape(title)}</th>" for title, style in zip(head, classes, strict=True))
    lines = ["".join(f"<td{_class(style)}>{_cell(value)}</td>" for value, style in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _class(style: str) -> str:
    return f' class="{style}"' if style else ""


def _cell(value: Any) -> str:
    return value if isinstance(value, Html) else escape(f"{value:,}" if isinstance(value, int) else str(value))
