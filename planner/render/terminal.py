"""What the output can show (width, colours, characters), and the little typesetting that the screens need."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from planner.value import Value

MIN_WIDTH, MAX_WIDTH = 80, 120

_SGR = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
    "white": "37",
}
# One glyph a part, the largest part first: told apart without colours as well.
_GLYPHS = {True: "█▓▒░▚▞▖", False: "#=+-:o."}
_HUES = ("blue", "cyan", "magenta", "yellow", "green", "red", "white")


class Terminal(Value):
    """
    What can be shown.

    Attributes:
        width: Columns; never less than 80.
        colour: Whether escape codes for colours are understood.
        unicode: Whether block characters can be encoded.
    """

    width: int = MIN_WIDTH
    colour: bool = False
    unicode: bool = True

    @classmethod
    def of(cls, stream: TextIO) -> Terminal:
        """
        What a stream can show. Colours only on a terminal, and not where NO_COLOR is set (https://no-color.org).
        """
        tty = stream.isatty()
        asked = shutil.get_terminal_size((MIN_WIDTH, 24)).columns if tty or os.environ.get("COLUMNS") else MIN_WIDTH
        return cls(
            width=min(max(asked, MIN_WIDTH), MAX_WIDTH),
            colour=tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
            unicode=_can_encode(stream, "█▖·…×"),
        )

    def paint(self, text: str, *styles: str) -> str:
        """The text in these styles, where colours are shown."""
        if not self.colour or not styles or not text:
            return text
        return f"\x1b[{';'.join(_SGR[style] for style in styles)}m{text}\x1b[0m"

    def fit(self, text: str, width: int) -> str:
        """The text cut to a width, its middle left out: the ends of ids and paths say most."""
        if len(text) <= width:
            return text
        mark = "…" if self.unicode else "..."
        keep = max(width - len(mark), 0)
        head = (keep + 1) // 2
        return text[:head] + mark + (text[len(text) - (keep - head) :] if keep > head else "")

    def cut(self, text: str, width: int) -> str:
        """The text cut to a width, its end left out."""
        mark = "…" if self.unicode else "..."
        return text if len(text) <= width else text[: max(width - len(mark), 0)].rstrip(" ,:;") + mark

    def glyph(self, index: int) -> str:
        """The character of the index-th part of a bar, painted as there."""
        index %= len(_HUES)
        return self.paint(_GLYPHS[self.unicode][index], _HUES[index])

    def bar(self, parts: Sequence[int], whole: int, width: int) -> str:
        """
        Parts of a whole as one bar; what they leave of it is dotted.

        A part that is there gets one column at least; rounding is taken from the largest.
        """
        columns = [max(width * part // whole, 1) if part > 0 else 0 for part in parts]
        spare = width - sum(columns)
        if spare < 0 or sum(parts) >= whole:
            columns[max(range(len(columns)), key=columns.__getitem__)] += spare
            spare = 0
        filled = "".join(self.paint(_GLYPHS[self.unicode][i] * n, _HUES[i]) for i, n in enumerate(columns))
        return filled + self.paint(("·" if self.unicode else " ") * spare, "dim")

    @property
    def num_parts(self) -> int:
        """How many parts a bar can tell apart."""
        return len(_HUES)


def wrap(text: str, width: int, indent: int = 0) -> list[str]:
    """Text in lines of a width, each indented; words too long for a line are broken."""
    return textwrap.wrap(text, width, initial_indent=" " * indent, subsequent_indent=" " * indent)


def listing(items: Iterable[str], width: int, separator: str = ", ") -> list[str]:
    """Items in lines of a width; no line ends inside an item."""
    return [row.replace("\0", " ") for row in wrap(separator.join(item.replace(" ", "\0") for item in items), width)]


def labelled(label: str, lines: Iterable[str], indent: int) -> list[str]:
    """Lines beside a label that stands before the first of them."""
    return [(f"{label:<{indent}}" if i == 0 else " " * indent) + line for i, line in enumerate(lines)]


def printable(text: str) -> str:
    """The text without what could move a cursor: control characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def write(lines: Iterable[str], stream: TextIO | None = None) -> None:
    """
    Print lines to standard output. A reader that has gone away (`| head`) ends the output, not the program.
    """
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = "".join(f"{line.rstrip()}\n" for line in lines)
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        # What is buffered would raise again at exit: let it go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def progress(stream: TextIO) -> Iterator[Callable[[str], None] | None]:
    """
    Gives a function that shows what is going on, in one line that is gone in the end; None where nobody watches the stream.
    """
    if not stream.isatty():
        yield None
        return

    def show(text: str) -> None:
        stream.write(f"\r\x1b[K{printable(text)} ...")
        stream.flush()

    try:
        yield show
    finally:
        stream.write("\r\x1b[K")
        stream.flush()


def _can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
