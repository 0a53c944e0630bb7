"""What an optimizer's step allocates, event by event, against the formulas of its highest moment."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.dtypes import DType
from planner.engines.optimizing import Trained, clip, make_states, update
from planner.formulas.blocks import allocated, total_allocated
from planner.formulas.gradients import clip_grad_norm
from planner.formulas.optimizer import VARIANTS, Parameter, shared_states, states, step_temporaries
from planner.history import History

SHAPES = [(64, 4096), (300,), (4096, 16), (4096, 16), (50_000,), (128, 128)]
PARAMETERS = [Parameter(shape, DType.BF16) for shape in SHAPES]
TRAINED = [Trained(parameter, f"module {i}", None) for i, parameter in enumerate(PARAMETERS)]


def live(history: History) -> list[int]:
    """Bytes in blocks after each event."""
    return list(accumulate(allocated(history.sizes[e]) if e >= 0 else -allocated(history.sizes[~e]) for e in history.events))


@pytest.mark.parametrize("optim", VARIANTS)
def test_temporaries_reach_the_formulas_moment(optim):
    """The peak is the formula's, to the byte, and nothing is left behind."""
    history = History()
    update(history, optim, TRAINED)
    curve = live(history) or [0]

    assert max(curve) == step_temporaries(VARIANTS[optim], [[(parameter, 1) for parameter in PARAMETERS]])
    assert curve[-1] == 0


@pytest.mark.parametrize("optim", VARIANTS)
def test_states_are_those_of_the_formulas(optim):
    """Each on the card, with the tables that all share, once."""
    history = History()
    make_states(history, optim, TRAINED)
    variant = VARIANTS[optim]
    wanted = [state.device_bytes for parameter in PARAMETERS for state in states(variant, parameter)]
    wanted += [state.device_bytes for state in shared_states(variant, PARAMETERS)]

    assert sorted(history.sizes) == sorted(size for size in wanted if size)
    assert history.events == list(range(len(history.sizes)))


@given(st.lists(st.integers(1, 200_000), min_size=1, max_size=12))
def test_clipping_goes_through_its_moments(numels):
    """The highest of the formula's three moments is the peak."""
    trained = [Trained(Parameter((n,), DType.FP32), "", None) for n in numels]
    counted = [(n, 1) for n in numels]
    history = History()
    clip(history, trained, counted)

    assert max(live(history)) == max(total_allocated(moment) for moment in clip_grad_norm(counted, DType.FP32))
    assert live(history)[-1] == 0


def test_instances_of_layers_leave_nothing_to_each_other():
    """Else the events of one could not stand for those of another."""
    history = History()
    update(history, "adafactor", [Trained(PARAMETERS[0], "", owner) for owner in (None, 0, 0, 1, 1, 2, None)])
    alive: set[int] = set()
    for event in history.events:
        if event >= 0:
            owners = {history.owners[storage] for storage in alive} - {None, history.owners[event]}

            assert history.owners[event] is None or not owners
        (alive.add if event >= 0 else alive.discard)(event if event >= 0 else ~event)
