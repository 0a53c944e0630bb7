"""What the callback prints."""

from __future__ import annotations

from planner import estimate
from planner.records.record import Level
from planner.render.terminal import Terminal
from planner.render.watched import lines, plan_lines
from planner.units import GIB

QWEN = "Qwen/Qwen2.5-0.5B"


def test_predicted_stands_beside_measured():
    """2 GiB predicted, 1.6 measured: 25 % more; what was not predicted, or not measured in percent, is left blank."""
    rows = lines({"forward": 2 * GIB}, {"forward": 16 * GIB // 10, "save": GIB}, Terminal(), levels={"process": Level(4 * GIB, 3 * GIB)})

    assert rows[1].split() == ["forward", "2.00", "GiB", "1.60", "GiB", "+25.00", "%"]
    assert rows[2].split() == ["save", "1.00", "GiB"]
    assert rows[3].split() == ["all:", "process", "3.00", "GiB", "4.00", "GiB", "-25.00", "%"]


def test_notes_are_wrapped():
    """No line is wider than the terminal."""
    rows = lines({}, {"forward": GIB}, Terminal(), notes=["word " * 60])

    assert max(map(len, rows)) <= 80
    assert rows[2].startswith("note: word")


def test_the_plan_says_whether_it_fits():
    """The verdict first where there is a card; the peak alone where there is none."""
    there = plan_lines(estimate(QWEN, gpu="t4"), Terminal(), notes=["assumed"])
    nowhere = plan_lines(estimate(QWEN), Terminal())

    assert there[0].startswith(f"qplan: {QWEN}, qlora nf4")
    assert any(row.startswith("FITS on Tesla T4: needs") for row in there)
    assert "note: assumed" in there
    assert any(row.startswith("predicted: ") for row in nowhere)
