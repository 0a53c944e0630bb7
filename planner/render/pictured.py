"""What rows of a sweep can show of themselves: heat maps, and in a notebook a table of the first of them with a count of verdicts."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from planner.render import markup
from planner.render.chart import Chart
from planner.render.heatmap import RESULTS, Columns, choose, heatmap
from planner.render.palette import OUTCOMES
from planner.units import human

_SHOWN = 10
_COUNTED = 1 << 20
"""Rows that are counted by their verdicts; of more, the first ones are shown alone."""


class Pictured(ABC):
    """Rows by column that can be looked at."""

    @property
    @abstractmethod
    def columns(self) -> Columns:
        """All rows by column, as NumPy arrays."""

    @abstractmethod
    def rows(self) -> Iterator[dict[str, Any]]:
        """Row by row."""

    @abstractmethod
    def __len__(self) -> int: ...

    def heatmap(
        self,
        x: str | None = None,
        y: str | None = None,
        color: str | None = None,
        *,
        where: Mapping[str, Any] | None = None,
        path: str | os.PathLike[str] | None = None,
        interactive: bool = False,
    ) -> Chart:
        """
        The rows as heat maps, with the line between what runs and what does not; one panel for each card, or other knob that varies.

        Args:
            x: The knob along the horizontal axis. None: `batch_size` where it varies, else the first knob that does.
            y: The knob along the vertical axis. None: `seq_len` where it varies, else the next knob that does.
            color: `headroom_bytes`, `outcome`, `process_bytes`, `reserved_bytes` or `allocated_bytes`. None: what is to spare where every
                row was simulated, else the verdict; without a card, what is allocated.
            where: The values of knobs to keep. Of those that are left one may vary.
            path: Where to write it too: .png or .svg (matplotlib), .html (plotly).
            interactive: Whether plotly draws it.

        Raises:
            InvalidRecipeError: No such columns or values, or more knobs vary than can be drawn.
            InvalidOutputError: The file cannot be written.
            MissingExtraError: What draws is not installed: `pip install "qplan[plot]"`.
        """
        return heatmap(self.columns, x, y, color, where=where, path=path, interactive=interactive)

    def is_computed(self) -> bool:
        """Whether reading the rows takes no time worth mentioning: looking at them in a notebook may then read them."""
        return True

    def _repr_html_(self) -> str:
        if not self.is_computed():
            later = "computed when they are read: .columns, .to_pandas(), .to_parquet(path), .heatmap(), .bars()"
            return markup.box(markup.line(repr(self).strip("<>"), strong=True), markup.line(later, faint=True))
        first = []
        for row in self.rows():
            first.append(row)
            if len(first) == _SHOWN:
                break
        parts = [markup.line(f"{len(self):,} rows", strong=True)]
        if 0 < len(self) <= _COUNTED:
            parts += _verdicts(self.columns)
        return markup.box(*parts, _table(first), *([markup.line("…", faint=True)] if len(self) > len(first) else []))


def named_rows(columns: Columns, where: Mapping[str, Any]) -> dict[str, int]:
    """
    The rows in which knobs have these values, by what tells them from each other.

    Args:
        columns: A sweep's.
        where: The values of knobs.

    Raises:
        InvalidRecipeError: There are none.
    """
    rows = choose(columns, where)
    knobs = [name for name in columns if name not in RESULTS]
    varied = [name for name in knobs if len(set(map(str, columns[name][rows].tolist()))) > 1]
    return {", ".join(_knob(name, columns[name][row]) for name in varied) or "the run": int(row) for row in rows}


def _knob(name: str, value: Any) -> str:
    return str(value) if name in ("model", "gpu") or isinstance(value, str) else f"{name.replace('_', ' ')} {value}"


def _verdicts(columns: Columns) -> list[str]:
    """How many rows have each verdict."""
    found = columns["outcome"].tolist()
    return [
        markup.verdict(word.replace("_", " "), colour, f": {found.count(word):,}") for word, colour in OUTCOMES.items() if found.count(word)
    ]


def _table(rows: list[dict[str, Any]]) -> str:
    names = [name for name in (rows[0] if rows else ()) if name != "simulated" and any(row[name] is not None for row in rows)]
    words = [name for name in names if any(isinstance(row[name], str) for row in rows)]
    order = [*words, *(name for name in names if name not in words)]
    cells = [[_cell(name, row[name]) for name in order] for row in rows]
    colours = [OUTCOMES.get(str(row.get("outcome"))) for row in rows]
    return markup.table([name.removesuffix("_bytes").replace("_", " ") for name in order], cells, colours, words=len(words))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith("_bytes"):
        return human(value)
    return str(value).replace("_", " ") if name in ("outcome", "phase") else str(value)
