"""What a verification leaves behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from planner import catalog, keeping, own_values, stack, verifying
from planner.architecture import build_spec
from planner.recipe import make_recipe
from planner.records import Store
from planner.report import ModelReport, PhaseReport
from planner.units import GIB, MIB
from planner.verification import Apart, Side, Verification
from tests.records.sample import CONFIG

SPEC = build_spec(CONFIG, id="org/model", source="bundled")
RECIPE = stack.resolve(make_recipe(), stack.LATEST, SPEC.dtype)


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path / "home"))


def side(engine: str, nbytes: int, reserved: int | None = None) -> Side:
    """One side of which the forward alone is known."""
    return Side(engine, None, (PhaseReport("forward", nbytes, {"parameter": nbytes}),), None, 0, 1, None, reserved, reserved)


def verification(measured: Side | None, apart: Apart | None = None) -> Verification:
    """What came of a run."""
    return Verification(
        model=ModelReport("org/model", "llama", "bundled", 1, 0, 1),
        recipe=RECIPE.model_dump(),
        stack=stack.LATEST.versions,
        device="cpu",
        weights="synthetic",
        measured=measured,
        predicted=side("traced", 6 * GIB, 7 * GIB),
        apart=apart or Apart(),
    )


def test_a_record_has_what_was_measured_and_predicted():
    """Rows by phase and category, every level, what was measured apart; the store has it."""
    found = verification(side("measured", 5 * GIB, 6 * GIB))
    record = keeping.keep(found, SPEC, RECIPE, stack.LATEST, None)

    assert Store().read().records == (record,)
    assert (record.origin, record.engine, record.card) == ("verify", "traced", None)
    assert [(row.category, row.measured_bytes, row.predicted_bytes) for row in record.comparison] == [
        (None, 5 * GIB, 6 * GIB),
        ("parameter", 5 * GIB, 6 * GIB),
    ]
    assert record.peak["reserved"] == (6 * GIB, 7 * GIB)


def test_what_is_the_cards_own_is_kept():
    """The context; one of two threads' workspaces; 1 GiB reserved beyond 5 allocated: 200 thousandths."""
    card = catalog.find_device("a6000")
    measured = Side("measured", None, (PhaseReport("forward", 5 * GIB, {}),), None, 0, 1, None, 6 * GIB, 6 * GIB + 480 * MIB)
    found = verification(measured, Apart(480 * MIB, 16 * MIB, GIB))
    record = keeping.keep(found, SPEC, RECIPE, stack.LATEST, card, driver="580.95.05")
    own = own_values.recall(card)

    assert (own.context_bytes, own.workspace_bytes, own.reserve_per_mille) == (480 * MIB, 8 * MIB, 200)
    assert own.measured.endswith(f"torch {stack.LATEST.versions['torch']}, driver 580.95.05")
    assert (record.driver, record.process["context_bytes"]) == ("580.95.05", 480 * MIB)


@pytest.mark.parametrize(("optim", "expected"), [("adamw_torch", 600 * MIB), ("paged_adamw_8bit", 480 * MIB)])
def test_kernels_that_were_loaded_count_with_the_context(optim, expected):
    """At the peak the process held 600 MiB beyond reserved, 480 of them before the first kernel; paged states would be in the 600 too."""
    card = catalog.find_device("a6000")
    measured = Side("measured", None, (PhaseReport("forward", 5 * GIB, {}),), None, 0, 1, None, 6 * GIB, 6 * GIB + 600 * MIB)
    found = verification(measured, Apart(480 * MIB, None, GIB))
    found.recipe["optim"] = optim
    keeping.keep(found, SPEC, RECIPE, stack.LATEST, card)

    assert own_values.recall(card).context_bytes == expected


def test_without_a_context_nothing_is_the_cards_own():
    """NVML did not answer: the record alone is kept."""
    card = catalog.find_device("a6000")
    keeping.keep(verification(side("measured", 5 * GIB)), SPEC, RECIPE, stack.LATEST, card)

    assert own_values.recall(card) is None
    assert len(Store().read().records) == 1


def test_a_run_that_ended_for_want_of_memory_leaves_no_record():
    """Nothing was measured to its end."""
    assert keeping.keep(verification(None), SPEC, RECIPE, stack.LATEST, None) is None
    assert Store().read().records == ()


def test_a_disk_that_refuses_loses_no_measurement(tmp_path, monkeypatch):
    """A file stands where the folder should be: what was measured is answered, with a note why there is no record."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path / "file"))
    order = SimpleNamespace(spec=SPEC, recipe=RECIPE, stack=stack.LATEST, card=None)
    found = verifying.keep(verification(side("measured", 5 * GIB)), order)

    assert found.measured.peak.allocated_peak_bytes == 5 * GIB
    assert "no record was kept: the record could not be written" in found.notes[-1]
