"""Ways to train, side by side."""

from __future__ import annotations

import pytest

from planner import api, comparison
from planner.errors import UnsupportedRecipeError
from tests import fakes

LLAMA_7B = "meta-llama/Llama-2-7b-hf"


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch):
    monkeypatch.setattr("planner.engines.analytic.analyse", fakes.analyse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_a_row_holds_what_the_report_says():
    """Weights are the base and its quantisation state; the card is the smallest that takes it."""
    report = api.estimate(LLAMA_7B, rank=8)
    row = comparison.row(LLAMA_7B, "qlora", lambda: report)

    assert row.weights_bytes == report.peak.by_category["parameter"] + report.peak.by_category["quant_state"]
    assert (row.allocated_bytes, row.process_bytes) == (report.peak.allocated_bytes, report.peak.process_bytes)
    assert row.smallest_card == next(card.device.name for card in report.verdicts if card.verdict.fits)
    assert row.error is None


def test_a_refusal_is_a_row():
    """What the stack says stands where the sizes would."""

    def refused():
        raise UnsupportedRecipeError("lora_dropout on experts", hint="pass --dropout 0")

    assert comparison.row(LLAMA_7B, "lora", refused) == comparison.Row(LLAMA_7B, "lora", error="lora_dropout on experts")


def test_no_card_is_none():
    """Where no common card takes it, the row says so with None."""
    row = comparison.row("x", "full", lambda: api.estimate("meta-llama/Llama-3.1-405B", method="full"))

    assert (row.smallest_card, row.outcome) == (None, None)
