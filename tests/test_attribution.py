"""What a storage is for where nobody declares it."""

from __future__ import annotations

import pytest

from planner.attribution import category_of
from planner.ledger import Category, Phase

C, P = Category, Phase


@pytest.mark.parametrize(
    ("phase", "grad_enabled", "expected"),
    [
        (P.LOAD, True, C.PARAMETER),
        (P.PREPARE, True, C.TEMPORARY),
        (P.FORWARD, True, C.ACTIVATION),
        (P.FORWARD, False, C.ACTIVATION),  # a checkpointed layer
        (P.BACKWARD, True, C.ACTIVATION),  # what it runs again
        (P.BACKWARD, False, C.TEMPORARY),
        (P.OPTIMIZER_STEP, False, C.TEMPORARY),
        (P.EVALUATION, False, C.ACTIVATION),
        (P.SAVE, True, C.TEMPORARY),
    ],
)
def test_by_when_it_is_born(phase: Phase, grad_enabled: bool, expected: Category) -> None:
    """Forward makes activations, backward and the update temporaries, loading parameters."""
    assert expected is category_of(phase, (4, 8), grad_enabled=grad_enabled)


@pytest.mark.parametrize("phase", [P.FORWARD, P.BACKWARD, P.EVALUATION])
def test_what_is_as_wide_as_the_vocabulary_is_logits(phase: Phase) -> None:
    """In whichever direction; a vector of that length, a layer of that width and other phases have none."""
    assert category_of(phase, (2, 8, 100), vocab_size=100, grad_enabled=False) is C.LOGITS
    assert category_of(phase, (100,), vocab_size=100) is not C.LOGITS
    assert category_of(phase, (100, 8), vocab_size=100) is not C.LOGITS
    assert category_of(phase, (2, 100), vocab_size=100, is_in_layer=True) is not C.LOGITS
    assert category_of(phase, (2, 100)) is not C.LOGITS


def test_weights_of_the_head_are_no_logits() -> None:
    """Nor is what the optimizer makes of their shape."""
    assert category_of(P.LOAD, (8, 100), vocab_size=100) is C.PARAMETER
    assert category_of(P.OPTIMIZER_STEP, (8, 100), vocab_size=100) is C.TEMPORARY


def test_every_phase_has_an_answer() -> None:
    """No shape and no phase is left without a category, and nothing is unattributed."""
    found = {category_of(phase, shape, vocab_size=3) for phase in Phase for shape in ((), (3,), (0, 3), (2, 3))}

    assert found <= set(Category) - {C.UNATTRIBUTED}
