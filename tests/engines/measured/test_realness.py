"""Steps that are real, and each way not to be."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from planner.engines.measured.realness import Check, NotReal  # noqa: E402


def trained(gradient: Any = 1.0) -> dict[str, Any]:
    """Two parameters with gradients."""
    found = {name: torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for name in ("a", "b")}
    for p in found.values():
        p.grad = None if gradient is None else torch.full((3,), float(gradient), dtype=torch.bfloat16)
    return found


def test_a_step_that_trains() -> None:
    """One changed element of one parameter is enough, and sums that cancel are seen."""
    parameters = trained()
    check = Check(parameters)
    check.loss(2.5)
    with torch.no_grad():
        check.before()
        parameters["b"][0], parameters["b"][1] = 2.0, 0.0
        check.after()

    assert check.losses == [2.5]


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number(loss: float) -> None:
    """It is named."""
    with pytest.raises(NotReal, match=f"the loss is {loss}"):
        Check(trained()).loss(loss)


@pytest.mark.parametrize(("gradient", "words"), [(None, "`a` has no gradient"), (0, "all gradients of 2"), (float("nan"), "of `a` is nan")])
def test_gradients_that_train_nothing(gradient: Any, words: str) -> None:
    """Missing, all zero, or no numbers."""
    with pytest.raises(NotReal, match=words):
        Check(trained(gradient)).before()


def test_weights_that_do_not_change() -> None:
    """An optimizer that did nothing is told."""
    check = Check(trained())
    check.before()
    with pytest.raises(NotReal, match="changed none of 2"):
        check.after()
