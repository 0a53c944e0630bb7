"""The local profile: a card's own context, workspace and reserve, used for that card alone, and named."""

from __future__ import annotations

import json

import pytest

from planner import catalog, estimate, own_values, verdict
from planner.device import Device
from planner.errors import InvalidOutputError
from planner.formulas.runtime import allocator_reserve, cuda_context
from planner.own_values import OwnValues
from planner.units import GIB, MIB
from tests.nvml_stand_in import A100, T4, card

MEASURED = "2026-11-28, torch 2.13.0+cu130, driver 580.95.05"
VALUES = OwnValues(511 * MIB, 9 * MIB, 20, MEASURED)
QWEN = "Qwen/Qwen2.5-0.5B"


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path / "home"))


def test_what_is_remembered_is_recalled_for_that_card_alone():
    """The same name and compute capability; any other card has nothing."""
    a100 = catalog.find_device(A100)
    own_values.remember(a100, VALUES)

    assert own_values.recall(a100) == VALUES
    assert catalog.find_device("A100-80GB").own == VALUES
    assert own_values.recall(Device(A100, 80 * GIB, (9, 0))) is None
    assert [device.name for device in catalog.list_devices() if device.own] == [A100]
    assert catalog.find_device("t4").own is None


def test_the_local_card_has_its_own_values(machine):
    """The card that NVML finds is the one that was measured."""
    machine(card(0, T4))
    before = catalog.local_device()
    own_values.remember(before, VALUES)

    assert (before.own, catalog.local_device().own) == (None, VALUES)


def test_the_verdict_takes_the_context_and_says_so():
    """Required, usable and the device's context move by what the context is more than published; torch's bytes do not."""
    before = estimate(QWEN, gpu=A100)
    own_values.remember(catalog.find_device(A100), VALUES._replace(workspace_bytes=None))
    after = estimate(QWEN, gpu=A100)
    more = 511 * MIB - cuda_context((8, 0)).nbytes

    assert after.device.context_bytes == 511 * MIB
    assert after.device.usable_bytes == before.device.usable_bytes - more
    assert after.verdict.required_bytes == before.verdict.required_bytes + more
    assert (after.peak.allocated_bytes, after.peak.reserved_bytes) == (before.peak.allocated_bytes, before.peak.reserved_bytes)
    assert [warning for warning in after.warnings if warning not in before.warnings] == [
        f"the CUDA context (0.50 GiB) is measured on this card: {MEASURED}"
    ]


def test_a_workspace_of_its_own_replaces_the_formula():
    """Two threads, each with one of 9 MiB in place of 8.125 MiB: the workspace category, and nothing else, is that much more."""
    before = estimate(QWEN, gpu=A100)
    own_values.remember(catalog.find_device(A100), VALUES)
    after = estimate(QWEN, gpu=A100)
    moved = {name: size - before.peak.by_category[name] for name, size in after.peak.by_category.items()}

    assert moved == {name: 2 * (9 * MIB - 8320 * 1024) if name == "workspace" else 0 for name in moved}


def test_the_usual_reserve_is_the_cards_own_where_nothing_is_simulated():
    """Twenty thousandths of what is allocated; on another card the published share. An outlook takes it."""
    own, other = catalog.find_device(A100), catalog.find_device("t4")
    own_values.remember(own, VALUES)
    own = catalog.find_device(A100)
    nbytes = 10 * GIB

    assert verdict.reserve_of(nbytes, own).nbytes == -(-nbytes * 20 // 1000)
    assert verdict.reserve_of(nbytes, other) == allocator_reserve(nbytes)
    assert verdict.outlook(nbytes, own, "backward", "analytic").required_bytes == nbytes + -(-nbytes * 20 // 1000) + 511 * MIB


@pytest.mark.parametrize(
    "change",
    [
        {"context_bytes": 0},
        {"context_bytes": 10**12},
        {"context_bytes": "511"},
        {"workspace_bytes": -1},
        {"reserve_per_mille": 1.5},
        {"measured": "a\nb"},
        {"measured": None},
        {"schema_version": 2},
        {"name": "another"},
    ],
)
def test_a_damaged_file_moves_no_verdict(change):
    """Figures that cannot be, or another card's: as if nothing had been measured."""
    device = catalog.find_device(A100)
    path = own_values.remember(device, VALUES)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    assert own_values.recall(device) is None
    assert estimate(QWEN, gpu=A100).device.context_bytes == cuda_context((8, 0)).nbytes


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 60_000])
def test_a_file_that_is_no_json_moves_no_verdict(content):
    """The same for what is no document at all."""
    device = catalog.find_device(A100)
    own_values.remember(device, VALUES).write_text(content)

    assert own_values.recall(device) is None


def test_figures_that_cannot_be_are_not_kept():
    """A context below zero is a fault of the measurement, not a property of the card."""
    with pytest.raises(InvalidOutputError, match="cannot be"):
        own_values.remember(catalog.find_device(A100), VALUES._replace(context_bytes=-5))


def test_a_folder_that_may_not_be_made_is_an_error(tmp_path):
    """Said, with what to do."""
    (tmp_path / "home").write_text("")

    with pytest.raises(InvalidOutputError, match="could not be kept") as refused:
        own_values.remember(catalog.find_device(A100), VALUES)

    assert "QPLAN_HOME" in refused.value.hint


@pytest.mark.parametrize(("allocated", "reserved", "expected"), [(1000, 1020, 20), (1000, 1001, 1), (3, 4, 334), (10, 9, 0), (0, 0, 0)])
def test_the_reserve_is_in_thousandths_rounded_up(allocated, reserved, expected):
    """(reserved - allocated) / allocated, never below zero."""
    assert own_values.reserve_per_mille(allocated, reserved) == expected


def test_without_a_card_the_common_ones_with_their_own_values_are_named():
    """No card is named, and one of the common ones was measured here: the estimate says whose figures are its own, and uses them."""
    before = {card.device.name: card.verdict.required_bytes for card in estimate(QWEN).verdicts}
    own_values.remember(catalog.find_device(A100), VALUES)
    report = estimate(QWEN)
    moved = [card.device.name for card in report.verdicts if card.verdict.required_bytes != before[card.device.name]]

    assert moved == [A100]
    assert [warning for warning in report.warnings if "measured here" in warning] == [
        f"{A100}: the CUDA context (0.50 GiB) and cuBLAS's workspaces are measured here: {MEASURED}"
    ]
