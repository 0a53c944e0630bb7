"""Leaves of the tape's graph against torch's own."""

from __future__ import annotations

import pytest

from planner.dtypes import DType
from planner.operations.elementwise import add
from planner.operations.embedding import lookup
from planner.operations.linear import product
from planner.schedule import Tape
from planner.tensors import Leaf, Tensor
from tests.live import of_tape, of_torch, pair

torch = pytest.importorskip("torch")

ROWS, WIDTH, VOCABULARY = 24, 16, 50


def test_a_shared_leaf_waits_for_both_gradients():
    """The gradient of a tied head lives in the engine's buffer until the embedding's has come, and both are summed."""
    weight, table = pair((VOCABULARY, WIDTH))
    given = torch.arange(ROWS)

    def tied(t: Tape, ids: Tensor) -> Tensor:
        t.share(table)
        return product(t, lookup(t, table, ROWS, WIDTH), table, None, WIDTH, VOCABULARY)

    expected = of_torch(lambda ids: torch.nn.functional.linear(torch.nn.functional.embedding(ids, weight), weight), given)

    assert expected == of_tape(tied, Tensor(None, ROWS, DType.INT64))


@pytest.mark.parametrize("asks", [True, False], ids=["a leaf that asks for a gradient", "plain input"])
def test_autocast_keeps_its_copy_of_a_leaf(asks: bool):
    """An fp32 leaf that needs a gradient is copied once for all products under autocast; other inputs once for each."""
    first, a = pair((WIDTH, WIDTH))
    second, b = pair((WIDTH, WIDTH))

    def real() -> torch.Tensor:
        x = torch.zeros(ROWS, WIDTH, requires_grad=asks)
        with torch.autocast("cpu", torch.bfloat16):
            return torch.nn.functional.linear(x, first) + torch.nn.functional.linear(x, second)

    def taped(t: Tape) -> Tensor:
        x = t.new(ROWS * WIDTH, DType.FP32, "input")
        x = Leaf.of(x) if asks else x
        with t.autocasting(DType.BF16):
            return add(t, product(t, x, a, None, WIDTH, WIDTH), product(t, x, b, None, WIDTH, WIDTH))

    assert of_torch(real) == of_tape(taped)
