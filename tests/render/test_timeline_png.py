"""The picture."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from planner.errors import MissingExtraError
from planner.render import timeline_png
from planner.render.timeline import Picture, check
from planner.timeline import record
from planner.units import GIB, MIB
from tests import histories

PICTURES = {
    "a step": (histories.small, None, False),
    "a run": (histories.training, 12 * GIB, True),
    "a card far above": (histories.small, 80 * GIB, False),
    "a full card": (histories.small, 70 * MIB, True),
}


@pytest.mark.parametrize("name", PICTURES)
def test_it_is_a_picture(tmp_path, name):
    """PNG, 1920 x 1080, whatever there is to show; what a name holds is no formula."""
    pytest.importorskip("matplotlib")
    make, usable, whole_run = PICTURES[name]
    timeline = record(make(), usable, whole_run=whole_run)
    content = Picture(timeline, "$\\frac{1}$ " * 20, "qlora", "Tesla T4").save(tmp_path / "out.PNG").read_bytes()

    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1920, 1080)


def test_no_peak_is_lost():
    """Of each stretch the event at which most is allocated; fewer events than columns are all drawn."""
    timeline = record(histories.training(4, 1, 10))
    found, total = timeline_png.columns(timeline, 50), timeline.end - timeline.begin
    edges = [total * i // 50 for i in range(51)]

    assert [timeline.allocated[i] for i in found] == [max(timeline.allocated[a:b]) for a, b in pairwise(edges)]
    assert timeline.peak.event in found
    assert timeline_png.columns(timeline, total) == list(range(total))


def test_without_matplotlib_the_way_out_is_told(tmp_path, monkeypatch):
    """Before any work: the exact command, and the form that needs nothing."""
    monkeypatch.setattr(timeline_png, "find_spec", lambda name: None)

    with pytest.raises(MissingExtraError) as caught:
        check(tmp_path / "out.png")

    assert 'pip install "qplan[plot]"' in caught.value.hint
