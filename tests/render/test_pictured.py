"""Sweeps that are looked at: a table, a count of verdicts, charts, and nothing computed unasked."""

from __future__ import annotations

import pytest

from planner import estimate, sweep
from planner.errors import InvalidRecipeError
from planner.render.pictured import named_rows
from planner.units import human
from tests.render import grids
from tests.render.test_markup import Reader

SMALL = "meta-llama/Llama-3.2-1B"


@pytest.fixture(scope="module")
def found():
    """Eight rows on two cards, one of them refused."""
    return sweep(SMALL, gpu=["t4", "l4"], stack="latest", batch_size=[1, 16], seq_len=[1024, 4096])


def texts(value):
    """Every text of a value's page."""
    read = Reader(value._repr_html_())
    assert read.open == []
    return read.texts


def test_a_small_sweep_is_a_table(found):
    """Its rows with their knobs and sizes, and how many have each verdict."""
    shown, rows = texts(found), list(found.rows())

    assert shown[0] == "8 rows"
    assert all(human(row["allocated_bytes"]) in shown for row in rows)
    for outcome in ("fits", "tight", "does_not_fit"):
        count = sum(row["outcome"] == outcome for row in rows)
        assert (f": {count}" in shown) == (count > 0)


def test_a_large_sweep_is_not_computed_to_be_shown():
    """A million rows are named, with what can be done with them; not one is computed, and that takes no time."""
    told = []
    large = sweep(
        SMALL, gpu="t4", stack="latest", batch_size=range(1, 1001), seq_len=range(1, 1001), progress=lambda *done: told.append(done)
    )

    assert "1,000,000 rows" in texts(large)[0]
    assert "1,000,000 rows" in texts(large.fits_only())[0]
    assert told == []


def test_refused_rows_say_why():
    """What the libraries would refuse has its reason in the table, as text."""
    refused = sweep(SMALL, gpu="t4", stack="latest", loss=["liger"], batch_size=[1, 2])

    assert any("Liger" in text for text in texts(refused))


def test_a_row_has_its_whole_answer(found):
    """`report(n)` is the estimate of the n-th row: the same bytes and verdict, in the order of the rows."""
    for number, row in enumerate(found.rows()):
        report = found.report(number)
        single = estimate(SMALL, gpu=row["gpu"], stack="latest", batch_size=row["batch_size"], seq_len=row["seq_len"])

        assert report == single
        assert (report.peak.allocated_bytes, report.verdict.outcome) == (row["allocated_bytes"], row["outcome"])


@pytest.mark.parametrize("number", [-1, 8])
def test_there_is_no_such_row(found, number):
    """Rows are counted from 0; others are an IndexError, as of lists."""
    with pytest.raises(IndexError, match=f"row {number} of 8"):
        found.report(number)


def test_rows_are_named_by_what_varies():
    """Cards by their names, knobs with theirs; what all rows share is left out."""
    columns = grids.columns(batches=(1, 2), lengths=(1024,))

    assert set(named_rows(columns, {})) == {f"{card}, batch size {batch}" for card in grids.CARDS for batch in (1, 2)}
    assert list(named_rows(columns, {"gpu": "Tesla T4", "batch_size": 1})) == ["the run"]


def test_bars_and_heat_maps_of_a_sweep(found, tmp_path):
    """Both are written; a bar for each row that is left."""
    pytest.importorskip("matplotlib")
    found.heatmap(path=tmp_path / "map.png")
    chart = found.bars(where={"gpu": "Tesla T4"}, path=tmp_path / "bars.png")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["bars.png", "map.png"]
    assert [label.get_text() for label in chart.figure.axes[0].get_yticklabels()] == [
        f"batch size {batch}, seq len {length}" for batch in (1, 16) for length in (1024, 4096)
    ]


def test_too_many_bars_are_refused():
    """Forty bars can be read; more are refused before anything is drawn."""
    pytest.importorskip("matplotlib")
    many = sweep(SMALL, gpu="t4", stack="latest", simulate="none", batch_size=range(1, 42))

    with pytest.raises(InvalidRecipeError, match="41 rows are left; there is room for 40 bars"):
        many.bars()
