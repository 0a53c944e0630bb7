"""The judgement of a card: from hand-made runs whose memory is known."""

from __future__ import annotations

import pytest

from planner import verdict
from planner.accuracy import accuracy_of
from planner.allocator import AllocatorSettings
from planner.device import Device
from planner.formulas import runtime
from planner.history import History, Stretch
from planner.ledger import Category, Phase
from planner.simulation import Simulation
from planner.units import GIB, MIB

CONTEXT = runtime.cuda_context((7, 5)).nbytes
PLAIN = AllocatorSettings()


def card(usable: int, used: int = 0, capability: tuple[int, int] = (7, 5)) -> Device:
    """A card with so many bytes for tensors, beside its context and what others hold."""
    return Device("card", usable + used + runtime.cuda_context(capability).nbytes, capability, used_bytes=used)


def run(*sizes: int, settings: AllocatorSettings = PLAIN) -> Simulation:
    """Storages of so many MiB; a negative size frees the first that is as large."""
    history = History()
    live: dict[int, list[int]] = {}
    for size in sizes:
        if size > 0:
            live.setdefault(size, []).append(history.add(size * MIB, f"{size} MiB", Category.ACTIVATION))
        else:
            history.drop(live[-size].pop(0))
    history.stretches.append(Stretch(Phase.FORWARD, 0, len(history.events)))
    return Simulation(lambda: history, settings)


# 100 MiB reserved where there is room, 80 after a flush; 80 alive at once
HOLES = (20, 40, -20, 40)


@pytest.mark.parametrize(
    ("spare", "outcome", "flushes"), [(-20 * MIB - 1, "does_not_fit", 1), (-20 * MIB, "tight", 1), (-1, "tight", 1), (0, "tight", 0)]
)
def test_the_outcome_turns_where_the_allocator_turns(spare, outcome, flushes):
    """What is reserved on an endless card fits without a flush; what is alive at once fits after one; a byte less does not."""
    found = verdict.judge([run(*HOLES)], card(100 * MIB + spare), "forward", "analytic")

    assert (found.outcome, found.num_flushes) == (outcome, flushes)
    assert found.required_bytes + found.headroom_bytes == found.budget_bytes
    assert found.fits == (outcome != "does_not_fit")
    assert (found.headroom_bytes < 0) == (outcome == "does_not_fit")


def test_more_room_than_the_error_fits():
    """At the stated error the tight fit ends."""
    error = verdict.judge([run(*HOLES)], card(100 * MIB), "forward", "analytic").error_bytes
    outcomes = [verdict.judge([run(*HOLES)], card(100 * MIB + spare), "forward", "analytic").outcome for spare in (error - 1, error)]

    assert outcomes == ["tight", "fits"]


def test_what_is_required_is_what_the_process_holds():
    """With room, what is reserved and the context; where cached memory is given back, what stays."""
    roomy = verdict.judge([run(*HOLES)], card(GIB), "forward", "analytic")
    full = verdict.judge([run(*HOLES)], card(90 * MIB), "forward", "analytic")

    assert roomy.required_bytes == 100 * MIB + CONTEXT
    assert full.required_bytes == 80 * MIB + CONTEXT


def test_the_levels_of_a_peak():
    """On an endless card, on one with room, on one that is full, and on one that is too small: there, what it would take."""
    cards = (None, card(GIB), card(90 * MIB), card(50 * MIB))
    found = [verdict.held([run(*HOLES)], device).reserved_bytes for device in cards]

    assert found == [100 * MIB, 100 * MIB, 80 * MIB, 100 * MIB]
    assert verdict.held([run(*HOLES)], card(GIB)).process_bytes == 100 * MIB + CONTEXT


def test_orders_of_loading_that_are_left_to_chance_give_a_range():
    """A card that takes the run in one order only is a tight fit."""
    orders = [run(30, 40), run(30, -30, 60), run(10, 40)]
    held = verdict.held(orders, None)

    assert (held.reserved_bytes, held.reserved_low_bytes, held.reserved_high_bytes) == (70 * MIB, 50 * MIB, 90 * MIB)
    assert verdict.judge(orders, card(GIB), "forward", "analytic").outcome == "fits"
    assert verdict.judge([run(10), run(2000)], card(GIB), "forward", "analytic").outcome == "tight"


def test_a_failure_is_told_with_the_way_out():
    """Pages close the hole that segments leave."""
    pieces = (20, 40, 20, -40, 20)  # the last 20 MiB are cut from the hole of 40
    found = verdict.judge([run(*pieces, 40)], card(100 * MIB), "forward", "analytic")

    assert found.outcome == "does_not_fit"
    assert found.binding_phase == "forward"
    assert found.failure is not None
    assert (found.failure.operation, found.failure.requested_bytes) == ("40 MiB", 40 * MIB)
    assert found.runs_with_expandable_segments is True


@pytest.mark.parametrize("settings", ["", "expandable_segments:True"])
def test_no_way_out_is_looked_for_where_it_is_taken_already(settings):
    """Nor where nobody asks."""
    found = run(100, settings=AllocatorSettings.parse(settings))
    small = card(50 * MIB)

    assert verdict.judge([found], small, "forward", "analytic", explains=False).runs_with_expandable_segments is None
    expected = None if settings else False
    assert verdict.judge([found], small, "forward", "analytic").runs_with_expandable_segments is expected


@pytest.mark.parametrize(("capability", "unexplained"), [((7, 5), 0), ((8, 0), accuracy_of("analytic").process_bytes)])
def test_the_error_is_the_engines_and_the_contexts(capability, unexplained):
    """A share of what is reserved, and how far a context may be off."""
    device = card(GIB, capability=capability)
    found = verdict.judge([run(100)], device, "forward", "analytic")
    context = max(runtime.cuda_context(capability).error_bytes, unexplained)

    assert found.error_bytes == -(-100 * MIB * accuracy_of("analytic").reserved // 10_000) + context


def test_what_others_hold_is_not_ours():
    """The budget is the card less what other processes use, and never negative."""
    assert verdict.budget_bytes(Device("card", 100, (8, 0), used_bytes=30)) == 70
    assert verdict.budget_bytes(Device("card", 100, (8, 0), used_bytes=130)) == 0
    assert verdict.usable_bytes(card(50, used=30)) == 50
    assert verdict.usable_bytes(Device("card", 100, (8, 0))) == 0


@pytest.mark.parametrize(
    ("allocated", "outcome"), [(10 * GIB, "fits"), (19 * GIB, "tight"), (20 * GIB, "tight"), (20 * GIB + 1, "does_not_fit")]
)
def test_an_outlook_refuses_only_what_cannot_be(allocated, outcome):
    """Without a simulation, no more is certain than that what is allocated at once has to fit."""
    assert verdict.outlook(allocated, card(20 * GIB), "backward", "analytic").outcome == outcome
