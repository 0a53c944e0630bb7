"""What the output can show, and the typesetting."""

from __future__ import annotations

import io

import pytest

from planner.render import terminal
from planner.render.terminal import Terminal


class Stream(io.StringIO):
    """A stream that may be a terminal, of some encoding."""

    def __init__(self, *, tty: bool, encoding: str = "utf-8") -> None:
        super().__init__()
        self._tty, self._encoding = tty, encoding

    @property
    def encoding(self) -> str:
        return self._encoding

    def isatty(self) -> bool:
        return self._tty


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_colours_are_for_terminals_alone(monkeypatch):
    """Not in a pipe, not where NO_COLOR is set, not on a dumb terminal."""
    assert Terminal.of(Stream(tty=True)).colour
    assert not Terminal.of(Stream(tty=False)).colour
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Terminal.of(Stream(tty=True)).colour
    monkeypatch.setenv("NO_COLOR", "")
    assert Terminal.of(Stream(tty=True)).colour
    monkeypatch.setenv("TERM", "dumb")
    assert not Terminal.of(Stream(tty=True)).colour


@pytest.mark.parametrize(("columns", "width"), [("40", 80), ("100", 100), ("400", 120)])
def test_the_width_has_bounds(monkeypatch, columns, width):
    """Never below 80, and no wider than can be read."""
    monkeypatch.setenv("COLUMNS", columns)

    assert Terminal.of(Stream(tty=True)).width == width


def test_a_pipe_is_80_columns():
    """What is piped does not depend on the window."""
    assert Terminal.of(Stream(tty=False)).width == 80


def test_encodings_without_blocks_get_ascii():
    """Bars and ellipses fall back to what every encoding has."""
    ascii_only = Terminal.of(Stream(tty=False, encoding="ascii"))

    assert not ascii_only.unicode
    assert ascii_only.bar([3, 1], 8, 16).isascii()
    assert ascii_only.fit("a" * 90, 20).isascii()


@pytest.mark.parametrize("parts", [[5, 3, 1], [1000, 1, 1], [0, 4], [1, 0, 0], [10**12, 10**3]])
@pytest.mark.parametrize("room", [0, 7])
def test_a_bar_has_its_width_and_shows_every_part(parts, room):
    """However small a part is, it has a column; the bar is as long as asked."""
    whole = sum(parts) + room * sum(parts) // 3
    bar = Terminal(unicode=False).bar(parts, whole, 40)

    assert len(bar) == 40
    assert [glyph in bar for glyph in "#=+"[: len(parts)]] == [part > 0 for part in parts]


def test_long_names_lose_their_middle():
    """The ends of an id or a path say most."""
    shown = Terminal().fit("organisation/" + "x" * 80 + "-7b-hf", 30)

    assert len(shown) == 30
    assert shown.startswith("organisation/")
    assert shown.endswith("-7b-hf")


def test_control_characters_do_not_reach_the_terminal():
    """A name cannot move the cursor."""
    assert terminal.printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"


def test_what_cannot_be_encoded_is_escaped():
    """A path of another alphabet is printed all the same."""
    stream = Stream(tty=False, encoding="ascii")
    terminal.write(["модель"], stream)

    assert stream.getvalue() == "\\u043c\\u043e\\u0434\\u0435\\u043b\\u044c\n"


def test_progress_is_one_line_that_is_gone_in_the_end():
    """Each text replaces the one before it, also when the work fails; nothing in it moves the cursor."""
    stream = Stream(tty=True)

    def work() -> None:
        with terminal.progress(stream) as show:
            show("loading 3 of 80 layers")
            show("first\nstep")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert stream.getvalue() == "\r\x1b[Kloading 3 of 80 layers ...\r\x1b[Kfirst\\nstep ...\r\x1b[K"


def test_progress_is_for_terminals_alone():
    """A log gets no escape codes."""
    stream = Stream(tty=False)
    with terminal.progress(stream) as show:
        assert show is None

    assert stream.getvalue() == ""
