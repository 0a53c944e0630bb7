"""A timeline as one page that needs nothing else: no network, no library."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from planner.render.palette import COLOURS, label

if TYPE_CHECKING:
    from planner.render.timeline import Picture

_TEMPLATE = "timeline_page.html"


def page(picture: Picture) -> str:
    """
    The page. It draws, for each column of pixels, the event at which most is allocated, so that no peak is lost at any zoom.

    Args:
        picture: What to draw. Its data is embedded in full; columns that follow by addition are added up in the page.
    """
    data = picture.summary()
    data["reserved"] = _changes(picture.timeline.reserved, picture.timeline.start_reserved)
    data["categories"] = [{"category": c.value, "label": label(c), "colour": colour} for c, colour in COLOURS.items()]
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    template = files("planner.render").joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return template.replace("{{title}}", escape(picture.title)).replace("{{data}}", text)


def _changes(column: list[int], start: int) -> list[list[int]]:
    """A column that seldom changes, as [position, value from there on]."""
    found, last = [], start
    for position, value in enumerate(column):
        if value != last:
            found.append([position, value])
            last = value
    return found
