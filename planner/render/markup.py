"""Fragments of HTML for notebooks: everything escaped, nothing loaded, and no ground of their own, so that they suit light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_LINE = "1px solid rgba(128,128,128,.35)"
_FAINT = "opacity:.7"


def box(*parts: str) -> str:
    """Fragments under each other; a column that a page's own font and colour reach into."""
    return f'<div style="max-width:56em;line-height:1.45">{"".join(parts)}</div>'


def line(text: str, *, strong: bool = False, faint: bool = False) -> str:
    """One paragraph of plain text."""
    style = "margin:.15em 0;" + ("font-weight:600;" if strong else "") + (_FAINT if faint else "")
    return f'<div style="{style}">{escape(text)}</div>'


def verdict(word: str, colour: str, text: str) -> str:
    """A word with its mark, and what follows from it."""
    return f'<div style="margin:.15em 0"><span style="{_square(colour)}"></span><strong>{escape(word)}</strong>{escape(text)}</div>'


def bar(parts: Sequence[tuple[str, int, str]], whole: int, mark: int | None = None) -> str:
    """
    Sizes beside each other, in proportion.

    Args:
        parts: Name, size and colour of each.
        whole: The size that the full width stands for; nothing is cut where the parts are more.
        mark: A size to draw a line at.
    """
    total = max(whole, sum(size for _, size, _ in parts), 1)
    pieces = "".join(
        f'<span title="{escape(name, quote=True)}" style="width:{100 * size / total:.2f}%;background:{colour}"></span>'
        for name, size, colour in parts
    )
    at = ""
    if mark is not None:
        place = f"position:absolute;top:-2px;bottom:-2px;left:{100 * mark / total:.2f}%;border-left:2px solid currentColor"
        at = f'<span style="{place}"></span>'
    style = "position:relative;height:18px;margin:.4em 0;border:" + _LINE
    return f'<div style="{style}"><div style="display:flex;height:100%">{pieces}</div>{at}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], colours: Sequence[str | None] = (), *, words: int = 1) -> str:
    """
    A table whose first columns are words and whose others are numbers.

    Args:
        head: Names of the columns.
        rows: Cells, as they are shown.
        colours: A square before the first cell of each row, where there is one.
        words: How many columns are words.
    """
    marks = list(colours)
    body = []
    for number, cells in enumerate(rows):
        colour = marks[number] if number < len(marks) else None
        mark = "" if colour is None else f'<span style="{_square(colour)}"></span>'
        found = "".join(_cell("td", cell, position >= words, mark if not position else "") for position, cell in enumerate(cells))
        body.append(f"<tr>{found}</tr>")
    top = "".join(_cell("th", name, position >= words) for position, name in enumerate(head))
    return f'<table style="border-collapse:collapse;margin:.4em 0"><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def _cell(tag: str, text: str, is_number: bool, mark: str = "") -> str:
    side = "right" if is_number else "left"
    weight = ";font-weight:600" if tag == "th" else ""
    style = f"text-align:{side};padding:.1em .8em .1em 0;border-bottom:{_LINE};background:none{weight}"
    return f'<{tag} style="{style}">{mark}{escape(text)}</{tag}>'


def _square(colour: str) -> str:
    return f"display:inline-block;width:.8em;height:.8em;margin-right:.45em;background:{colour}"
