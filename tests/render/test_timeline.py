"""Memory over time as numbers, and what all its forms share."""

from __future__ import annotations

import html
import json

import pytest

from planner import api
from planner.errors import InvalidOutputError
from planner.ledger import Category
from planner.render import palette
from planner.render.timeline import Picture, check
from planner.timeline import record
from planner.units import KIB, MIB
from tests import histories


def picture(history=None, usable: int | None = None, **options) -> Picture:
    return Picture(record(history or histories.small(), usable, **options), "some/<model>", "qlora · trl", "Tesla T4" if usable else None)


def written(tmp_path, shown: Picture) -> dict:
    return json.loads(shown.save(tmp_path / "out.json").read_text(encoding="utf-8"))


def test_the_small_history_as_json(tmp_path):
    """Every field of the contract, as the module's docstring has it."""
    weight = 30 * MIB + 512
    found = written(tmp_path, picture(usable=80 * MIB))

    assert found == {
        "schema_version": 1,
        "title": "some/<model>",
        "subtitle": "qlora · trl",
        "is_whole_run": False,
        "first_event": 11,
        "num_events": 8,
        "card": {"name": "Tesla T4", "usable_bytes": 80 * MIB},
        "phases": [
            {"phase": "forward", "begin": 0, "end": 2},
            {"phase": "backward", "begin": 2, "end": 6},
            {"phase": "optimizer_step", "begin": 6, "end": 8},
        ],
        "start": {"allocated_bytes": weight, "reserved_bytes": 54 * MIB, "by_category": {"parameter": weight}},
        "peak": {
            "event": 2,
            "phase": "backward",
            "allocated_bytes": weight + 8 * MIB + 600 * KIB,
            "reserved_bytes": 54 * MIB,
            "by_category": {"parameter": weight, "gradient": 2 * MIB, "activation": 600 * KIB, "logits": 6 * MIB},
            "alive": {
                "name": ["weight", "logits", "gradient", "mm"],
                "scope": ["model.layers.*.mlp", "lm_head", "model.layers.*.mlp", "model.layers.*.mlp"],
                "category": ["parameter", "logits", "gradient", "activation"],
                "count": [1, 1, 1, 1],
                "allocated_bytes": [weight, 6 * MIB, 2 * MIB, 600 * KIB],
            },
        },
        "peak_reserved_bytes": 54 * MIB,
        "flushes": [],
        "failure": None,
        "operations": {
            "name": ["mm", "logits", "gradient", "empty"],
            "scope": ["model.layers.0.mlp", "lm_head", "model.layers.0.mlp", ""],
            "category": ["activation", "logits", "gradient", "temporary"],
        },
        "events": {
            "operation": [0, 1, 2, 1, 0, 3, 3, 2],
            "change_bytes": [600 * KIB, 6 * MIB, 2 * MIB, -6 * MIB, -600 * KIB, 0, 0, -2 * MIB],
            "allocated_bytes": [
                weight + 600 * KIB,
                weight + 600 * KIB + 6 * MIB,
                weight + 600 * KIB + 8 * MIB,
                weight + 600 * KIB + 2 * MIB,
                weight + 2 * MIB,
                weight + 2 * MIB,
                weight + 2 * MIB,
                weight,
            ],
            "reserved_bytes": [54 * MIB] * 8,
            "by_category": {
                "parameter": [weight] * 8,
                "gradient": [0, 0, *[2 * MIB] * 5, 0],
                "activation": [*[600 * KIB] * 4, 0, 0, 0, 0],
                "logits": [0, 6 * MIB, 6 * MIB, 0, 0, 0, 0, 0],
                "temporary": [0] * 8,
            },
        },
    }


def test_categories_add_up_at_every_event(tmp_path):
    """And so do the changes, from the start on."""
    found = written(tmp_path, picture(histories.training(3, 2, 8), whole_run=True))
    events, at = found["events"], found["start"]["allocated_bytes"]

    assert events["allocated_bytes"] == [sum(parts) for parts in zip(*events["by_category"].values(), strict=True)]
    for change, allocated in zip(events["change_bytes"], events["allocated_bytes"], strict=True):
        at += change
        assert at == allocated
    assert found["num_events"] == len(events["operation"]) == len(events["reserved_bytes"])


def test_a_full_card_is_told(tmp_path):
    """What asks for how much, and when; beyond the step it lies outside the columns."""
    found = written(tmp_path, picture(usable=70 * MIB))

    assert found["failure"] == {
        "event": 8,
        "phase": "evaluation",
        "name": "logits",
        "scope": "lm_head",
        "requested_bytes": 40 * MIB,
        "allocated_bytes": 30 * MIB + 512,
        "reserved_bytes": 32 * MIB,
    }


def test_other_endings_are_refused(tmp_path):
    """By name, before anything is drawn."""
    with pytest.raises(InvalidOutputError, match=r"does not end in \.html, \.png or \.json"):
        check(tmp_path / "out.svg")


def test_a_notebook_shows_the_page():
    """In a frame of its own, so that its style stays inside."""
    shown = picture()._repr_html_()

    assert shown.startswith('<iframe srcdoc="')
    assert "<title>some/&lt;model&gt;" in html.unescape(shown.split('"')[1])


def test_every_category_has_a_colour_of_its_own():
    """None is left out, and no two are alike."""
    assert set(palette.COLOURS) == set(Category)
    assert len(set(palette.COLOURS.values())) == len(Category)


@pytest.mark.parametrize("gpu", ["a6000", "t4"])
def test_the_picture_agrees_with_the_verdict(gpu):
    """The verdict replays the same run by other means: what is reserved at most, and where the card is full, are the same."""
    report = api.estimate("meta-llama/Llama-3.1-8B", gpu=gpu, seq_len=4096, batch_size=4)
    timeline, failure = report.timeline(whole_run=True).timeline, report.verdict.failure
    found = timeline.failure and (timeline.failure.phase.value, *timeline.failure[3:])

    assert timeline.peak_reserved == report.peak.reserved_bytes
    assert found == (failure and (failure.phase, failure.requested_bytes, failure.allocated_bytes, failure.reserved_bytes))
    assert (found is None) == (gpu == "a6000")
