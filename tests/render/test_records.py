"""The screens about records."""

from __future__ import annotations

import json

from planner.records import Damaged, Listing, Near
from planner.render import records as screen
from planner.render.terminal import Terminal
from tests.records.sample import CONFIG, sample


def test_the_table_shows_what_was_measured_and_how_far_the_prediction_was_off():
    """Five MiB measured, six predicted: 20 % more."""
    head, row = screen.lines(Listing((sample(batch_size=2),)), Terminal())

    assert head.split() == ["day", "card", "model", "run", "measured", "predicted"]
    assert row.split()[-5:] == ["512", "5.0", "MiB", "+20.00", "%"]
    assert "A100" in row and "org/model" in row and "qlora 2 x" in row
    assert len(row) <= 80


def test_long_names_do_not_widen_the_table():
    """80 columns are 80 columns."""
    rows = screen.lines(Listing((sample(id=f"org/{'m' * 80}", seq_len=1_000_000, batch_size=1000), sample(device=None))), Terminal())

    assert max(map(len, rows)) <= 80
    assert "CPU" in rows[2]


def test_an_organisation_makes_room_for_the_name():
    """What tells models apart is behind the slash."""
    row = screen.lines(Listing((sample(id=f"{'o' * 20}/SmolLM2-135M"),)), Terminal())[1]

    assert " SmolLM2-135M " in row


def test_no_records_say_how_to_get_some():
    """An empty table says nothing; a sentence does."""
    assert "qplan verify" in screen.lines(Listing(()), Terminal())[0]


def test_the_nearest_record_in_words():
    """Which run, how many there are, and every level that was measured."""
    text = " ".join(screen.near_lines(Near(sample(source="file: x", config=CONFIG), 3), Terminal(), 7))

    assert "llama of" in text and "1 x 512 tokens, 2026-11-28 (the nearest of 3)" in text
    assert "allocated 5.0 MiB measured, predicted +20.00 %" in text
    assert "process 0.49 GiB measured, predicted +2.00 %" in text


def test_json_has_ids_and_damage():
    """What was put aside is told too."""
    record = sample()
    found = json.loads(screen.as_json(Listing((record,), (Damaged("x.json", "why", None),))))

    assert found["records"][0] == {"id": record.id, **record.model_dump()}
    assert found["damaged"] == [{"name": "x.json", "reason": "why", "moved_to": None}]
