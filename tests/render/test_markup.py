"""Fragments of HTML."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from planner.render import markup

NASTY = '<script>alert("1")</script> & \'x\''


class Reader(HTMLParser):
    """Text, tags and attributes of a fragment; every tag that opens closes in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


FRAGMENTS = {
    "line": markup.line,
    "verdict": lambda text: markup.verdict(text, "#123456", text),
    "table": lambda text: markup.table([text, text], [[text, text]], ["#123456"]),
    "bar": lambda text: markup.bar([(text, 1, "#123456")], 2, mark=1),
    "box": lambda text: markup.box(markup.line(text)),
}


@pytest.mark.parametrize("name", FRAGMENTS)
def test_text_stays_text(name):
    """What a name holds is shown letter by letter and opens no tag."""
    read = Reader(FRAGMENTS[name](NASTY))

    assert "script" not in read.tags
    assert read.open == []
    assert NASTY in read.texts or NASTY in [value for _, value in read.attributes]


@pytest.mark.parametrize("name", FRAGMENTS)
def test_nothing_is_loaded_and_no_ground_is_set(name):
    """No address, no script, and no colour of the text or of the page's ground: light and dark themes keep theirs."""
    read = Reader(FRAGMENTS[name]("x"))
    styles = ";".join(value or "" for key, value in read.attributes if key == "style").split(";")
    set_ = {declaration.partition(":")[0]: declaration.partition(":")[2] for declaration in styles}

    assert {key for key, _ in read.attributes} <= {"style", "title"}
    assert "color" not in set_
    assert set_.get("background", "none") in ("none", "#123456")
    assert not set(read.tags) & {"script", "link", "img", "iframe", "style"}


def test_a_bar_is_in_proportion():
    """Parts have their share of the whole; the mark stands where its size is."""
    found = markup.bar([("a", 30, "#111111"), ("b", 20, "#222222")], 100, mark=80)

    assert [text in found for text in ("width:30.00%", "width:20.00%", "left:80.00%")] == [True] * 3


def test_parts_that_are_more_than_the_whole_are_not_cut():
    """Where the parts exceed the card, they fill the bar and the mark moves in."""
    found = markup.bar([("a", 150, "#111111"), ("b", 50, "#222222")], 100, mark=100)

    assert [text in found for text in ("width:75.00%", "width:25.00%", "left:50.00%")] == [True] * 3


def test_words_are_left_and_numbers_right():
    """As many first columns as are words are ranged left."""
    read = Reader(markup.table(["a", "b", "c"], [["x", "y", "1"]], words=2))
    sides = [value.partition(";")[0].partition(":")[2] for key, value in read.attributes if value and value.startswith("text-align")]

    assert sides == ["left", "left", "right"] * 2
