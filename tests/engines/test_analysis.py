"""What every engine answers with."""

from __future__ import annotations

import pytest

from planner.architecture import build_spec
from planner.engines.analysis import Analysis, host_ram
from planner.engines.reading import IN_TURN, NEVER
from planner.history import History, Stretch
from planner.ledger import Ledger, Phase
from planner.recipe import make_recipe
from planner.stack import Reading, behaviours, parse_stack, resolve
from planner.unrolling import unroll_events
from tests.engines.tiny import LLAMA

V, D, F, L, KV = 1000, 128, 320, 3, 64
PARAMETERS = 2 * V * D + L * (2 * D * D + 2 * D * KV + 3 * D * F + 2 * D) + D


def analysis(reading: Reading) -> tuple[Analysis, list[int | None]]:
    """An answer whose histories are written down by the pace of the thread that quantises; each flushes once."""
    asked: list[int | None] = []

    def write(pace: int | None) -> History:
        asked.append(pace)
        return History(flushes=[0])

    return Analysis(Ledger("analytic", (), ()), 0, 0, 0, 0, 0, 0, 0, run_key=(), reading=reading, _write=write), asked


def test_a_history_is_written_once_and_when_somebody_asks():
    """An estimate that nobody simulates writes none."""
    found, asked = analysis("in_turn")

    assert asked == []
    assert found.history is found.history
    assert asked == [None]
    assert found.other_histories() == ()


def test_a_loader_that_races_has_other_histories():
    """Threads that nobody keeps waiting are what is planned with; in turn, two slower paces and everything ahead are the others."""
    found, asked = analysis("ahead")
    others = found.other_histories()

    assert asked == []
    assert found.history.flushes == [0]
    assert [other().flushes for other in others] == [[0]] * 4
    assert asked == [0, IN_TURN, 25, 50, NEVER]


def test_where_the_versions_are_in_doubt_so_is_the_flush():
    """Planned in turn; the others race, and each of the five is there without its flush as well, from the same history."""
    found, asked = analysis("in_doubt")
    others = [other() for other in found.other_histories()]

    assert [other.flushes for other in others] == [[0]] * 4 + [[]] * 5
    assert found.history.flushes == [0]
    assert sorted(asked, key=str) == sorted([IN_TURN, 0, 25, 50, NEVER], key=str)


@pytest.mark.parametrize(
    ("knobs", "stack", "expected"),
    [
        ({"dtype": "bf16"}, "latest", V * D * 2),  # straight to the card: the embedding as it is stored
        ({"dtype": "fp32"}, "latest", V * D * (2 + 4)),  # and as it is cast
        ({"method": "lora", "dtype": "bf16"}, "latest", PARAMETERS * 2),  # on the CPU, then moved
    ],
)
def test_host_ram_is_the_largest_tensor_or_the_whole_model(knobs, stack, expected):
    """By where the stack's `from_pretrained` builds the model."""
    spec, versions = build_spec(LLAMA, id="tiny"), parse_stack(stack)
    recipe = resolve(make_recipe(**knobs), versions, spec.dtype)

    assert spec.num_parameters == PARAMETERS
    assert host_ram(spec, recipe, behaviours(versions, recipe)) == expected


def test_a_history_without_its_flushes_has_none_once_unrolled_either():
    """A history that shares its shape with another batch's would bring that one's flushes along."""
    shape = History(flushes=[0])
    shape.stretches.append(Stretch(Phase.LOAD, 0, 0))
    found = Analysis(
        Ledger("analytic", (), ()), 0, 0, 0, 0, 0, 0, 0, run_key=(), reading="in_doubt", _write=lambda _: shape.with_sizes([])
    )
    flushes = [list(unroll_events(other()).flushes) for other in found.other_histories()]

    assert flushes == [[0]] * 4 + [[]] * 5
