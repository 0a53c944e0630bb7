"""The result's own behaviour; its fields are checked against the contract in test_api."""

from __future__ import annotations

import dataclasses
import json

import pytest

from planner.report import Held, HostReport, ModelReport, PeakReport, PhaseReport, Report, Verdict

REPORT = Report(
    engine="analytic",
    model=ModelReport("some/model", "llama", "bundled", 10, 8, 2),
    recipe={"targets": ["q_proj"]},
    stack={"source": "newest profile"},
    phases=(PhaseReport("forward", 5, {"parameter": 5}),),
    peak=PeakReport("forward", 5, {"parameter": 5}, lambda: Held(6, 7, 6, 6)),
    steady_bytes=4,
    host=HostReport(1, 2, 3),
)


def test_a_dump_is_nested_json():
    """Tuples become lists, parts become objects, and nothing private is in it."""
    dumped = REPORT.model_dump()

    assert json.loads(REPORT.model_dump_json(indent=1)) == dumped
    assert dumped["schema_version"] == 1
    assert dumped["phases"] == [{"phase": "forward", "allocated_peak_bytes": 5, "by_category": {"parameter": 5}}]
    assert dumped["peak"] == {
        "phase": "forward",
        "allocated_bytes": 5,
        "reserved_bytes": 6,
        "process_bytes": 7,
        "reserved_low_bytes": 6,
        "reserved_high_bytes": 6,
        "by_category": {"parameter": 5},
    }
    assert (dumped["device"], dumped["verdict"], dumped["warnings"]) == (None, None, [])
    assert "details" not in dumped


def test_a_report_without_details_says_so():
    """The ledger is not invented."""
    with pytest.raises(AttributeError, match="no ledger"):
        _ = REPORT.ledger


def test_reports_cannot_be_changed():
    """A result is a value."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        REPORT.steady_bytes = 0
    with pytest.raises(AttributeError):
        REPORT.peak.allocated_bytes = 0


@pytest.mark.parametrize(("outcome", "fits"), [("fits", True), ("tight", True), ("does_not_fit", False)])
def test_a_tight_fit_counts_as_one(outcome, fits):
    """It may well run."""
    assert Verdict(outcome, 1, 2, 1, "backward", 2).fits is fits
