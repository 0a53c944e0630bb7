"""What every engine answers with."""

from __future__ import annotations

import pytest

from planner.architecture import build_spec
from planner.engines.analysis import Analysis, host_ram
from planner.history import History
from planner.ledger import Ledger
from planner.recipe import make_recipe
from planner.stack import behaviours, parse_stack, resolve
from tests.engines.tiny import LLAMA

V, D, F, L, KV = 1000, 128, 320, 3, 64
PARAMETERS = 2 * V * D + L * (2 * D * D + 2 * D * KV + 3 * D * F + 2 * D) + D


def analysis(*, races: bool) -> tuple[Analysis, list[int | None]]:
    """An answer whose histories are written down by how far the loader is ahead."""
    asked: list[int | None] = []

    def write(ahead: int | None) -> History:
        asked.append(ahead)
        return History()

    return Analysis(Ledger("analytic", (), ()), 0, 0, 0, 0, 0, 0, run_key=(), races=races, _write=write), asked


def test_a_history_is_written_once_and_when_somebody_asks():
    """An estimate that nobody simulates writes none."""
    found, asked = analysis(races=False)

    assert asked == []
    assert found.history is found.history
    assert asked == [0]
    assert found.other_histories() == ()


def test_a_loader_that_races_has_other_histories():
    """Four threads each a tensor ahead, and everything ahead."""
    found, asked = analysis(races=True)
    others = found.other_histories()

    assert asked == []
    assert [type(other()) for other in others] == [History, History]
    assert asked == [4, None]


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
