"""The stated errors are the worst of the published runs that they name, computed again."""

from __future__ import annotations

from math import ceil

import pytest

from planner.accuracy import ENGINES, accuracy_of
from planner.formulas.runtime import cuda_context
from planner.units import MIB, round_up
from tests.measurements.published import errors, report, runs

STATED = accuracy_of("analytic")


def test_the_reserved_error_is_the_worst_on_a_t4():
    """In hundredths of a percent of what was predicted, rounded up from what was measured."""
    worst = max(runs("T4"), key=lambda run: abs(report(run).peak.reserved_bytes / run.measured["reserved_peak_bytes"] - 1))
    error = abs(report(worst).peak.reserved_bytes / worst.measured["reserved_peak_bytes"] - 1)

    assert STATED.reserved == ceil(10_000 * error)
    assert worst.id in STATED.evidence


def test_what_processes_hold_beyond_that_is_the_worst_on_an_a100():
    """Beyond reserved and its error, and the context that is planned with; in whole 64 MiB."""
    beyond = {}
    for run in runs("A100"):
        peak = report(run).peak
        error = STATED.error_bytes(peak.reserved_bytes, cuda_context((8, 0)).nbytes)
        beyond[run.id] = run.measured["process_peak_bytes"] - peak.reserved_bytes - error
    worst = max(beyond, key=lambda name: beyond[name])

    assert STATED.process_bytes == round_up(beyond[worst], 64 * MIB)
    assert worst in STATED.evidence


@pytest.mark.parametrize("run", runs("A100"), ids=lambda run: run.id)
def test_measured_processes_lie_inside_the_stated_error(run):
    """On both sides."""
    verdict = report(run).verdict

    assert abs(run.measured["process_peak_bytes"] - verdict.required_bytes) <= verdict.error_bytes


@pytest.mark.parametrize("run", runs("T4"), ids=lambda run: run.id)
def test_measured_reserves_lie_inside_the_stated_error(run):
    """On both sides."""
    verdict = report(run).verdict

    assert abs(run.measured["reserved_peak_bytes"] + run.measured["context_bytes"] - verdict.required_bytes) <= verdict.error_bytes


def test_every_engine_states_its_error():
    """By the name that reports have."""
    assert set(ENGINES) == {"analytic", "traced"}


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["allocated", "reserved"])
def test_a_trace_states_the_worst_of_the_runs_on_a_t4(figure):
    """In hundredths of a percent of what was predicted, with the stack that is installed; a minute for both."""
    pytest.importorskip("trl")
    found = {run.id: errors(run, "traced")[f"{figure}_peak_bytes"] for run in runs("T4")}
    worst = max(found, key=lambda name: abs(found[name]))

    assert getattr(accuracy_of("traced"), figure) == ceil(10_000 * abs(found[worst]))
    assert worst in accuracy_of("traced").evidence
