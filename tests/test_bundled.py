"""Every bundled checkpoint, planned with default options."""

from __future__ import annotations

import pytest

import model_specs
from planner import estimate
from planner.errors import UnsupportedModelError, UnsupportedRecipeError
from planner.render.explain import resting


@pytest.mark.parametrize("name", model_specs.checkpoint_ids())
def test_every_bundled_checkpoint_is_planned_or_refused_by_name(name):
    """It succeeds with books that balance, or says which model or recipe it refuses, and what to do instead."""
    try:
        report = estimate(name, gpu="h200", stack="latest")
    except (UnsupportedModelError, UnsupportedRecipeError) as refusal:
        assert refusal.message
        assert refusal.hint
        return

    assert report.peak.allocated_bytes == sum(report.peak.by_category.values()) > report.steady_bytes > 0
    assert report.peak.allocated_bytes == max(phase.allocated_peak_bytes for phase in report.phases)
    assert report.verdict.required_bytes == report.peak.process_bytes
    assert sum(row.nbytes for row in resting(report.ledger)) == report.steady_bytes
    assert report.model.num_trainable_parameters > 0
