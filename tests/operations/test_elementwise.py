"""Operations element by element against real torch on the CPU: what each makes, saves, and makes in backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from planner.dtypes import DType
from planner.operations import elementwise as ops
from planner.schedule import Tape
from planner.tensors import Tensor
from tests.live import of_tape, of_torch, pair

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")

BF16, FP32 = DType.BF16, DType.FP32
ROWS, WIDTH = 8, 32
Real, Planned = Callable[..., "torch.Tensor"], Callable[..., Tensor]



def between(real: Real) -> Real:
    """Between two other operations: a leaf would keep the gradient that it is handed, or a copy of it."""
    return lambda *xs: real(*(x * 2.0 for x in xs)) * 2.0


def between_on_tape(planned: Planned) -> Planned:
    """The same on the tape."""
    return lambda t, *xs: ops.scale(t, planned(t, *(ops.scale(t, x) for x in xs)))


ONE: dict[str, tuple[Real, Planned]] = {
    "scale": (lambda x: x * 2.0, ops.scale),
    "negative": (lambda x: -x, ops.negative),
    "add_constant": (lambda x: x + 1.0, ops.add_constant),
    "square": (lambda x: x.pow(2), ops.square),
    "row_mean": (lambda x: x.mean(-1, keepdim=True), lambda t, x: ops.row_mean(t, x, ROWS)),
    "rsqrt": (torch.rsqrt, ops.rsqrt),
    "silu": (F.silu, lambda t, x: ops.act_fn(t, x, "silu")),
    "gelu": (F.gelu, lambda t, x: ops.act_fn(t, x, "gelu")),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), lambda t, x: ops.act_fn(t, x, "gelu_pytorch_tanh")),
    "relu": (F.relu, lambda t, x: ops.act_fn(t, x, "relu")),
    "tanh": (torch.tanh, lambda t, x: ops.activation_of_result(t, x, "tanh")),
    "sigmoid": (torch.sigmoid, lambda t, x: ops.activation_of_result(t, x, "sigmoid")),
    "dropout": (lambda x: torch.native_dropout(x, 0.1, train=True)[0], lambda t, x: ops.dropout(t, x, 0.1)),
    "no dropout": (lambda x: F.dropout(x, 0.0, training=False) * 1.0, lambda t, x: ops.scale(t, ops.dropout(t, x, 0.0))),
    "clamp": (lambda x: x.clamp(-1.0, 1.0), lambda t, x: ops.clamp(t, x, 2)),
    "clamp_max": (lambda x: x.clamp(max=1.0), lambda t, x: ops.clamp(t, x, 1)),
    "copy": (lambda x: x.clone(), ops.copy),
    "slice": (lambda x: x[..., : WIDTH // 2] * 2.0, lambda t, x: ops.scale(t, ops.part(t, x, ROWS * WIDTH // 2))),
    "split": (
        lambda x: F.silu(x.split((8, 24), -1)[1]) * x.split((8, 24), -1)[1],
        lambda t, x: ops.mul(
            t,
            ops.act_fn(t, ops.split(t, x, (ROWS * 8, ROWS * 24))[1], "silu"),
            ops.split(t, x, (ROWS * 8, ROWS * 24))[1],
        ),
    ),
    "expand": (lambda x: x[None].expand(4, -1, -1) * 2.0, lambda t, x: ops.scale(t, ops.expand(t, x, 4))),
    "repeat": (lambda x: x[None].expand(4, -1, -1).reshape(-1, WIDTH), lambda t, x: ops.repeat(t, x, 4)),
    "rotate_half": (
        lambda x: torch.cat((-x[..., WIDTH // 2 :], x[..., : WIDTH // 2]), dim=-1),
        lambda t, x: ops.concatenate(t, (ops.negative(t, ops.part(t, x, ROWS * 16)), ops.part(t, x, ROWS * 16))),
    ),
}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "frozen"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("name", ONE)
def test_of_one_tensor(name, dtype, grad):
    """The same bytes in forward, for backward, and in it."""
    real, planned = ONE[name]
    x, ours = pair((ROWS, WIDTH), dtype, grad=grad)

    assert of_torch(between(real), x) == of_tape(between_on_tape(planned), ours)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "relu2"])
def test_activations_in_python(name):
    """The activations that transformers spells out make what they make."""
    activations = pytest.importorskip("transformers.activations")
    x, ours = pair((ROWS, WIDTH))

    assert of_torch(activations.ACT2FN[name], x) == of_tape(lambda t, x: ops.act_fn(t, x, name), ours)


TWO: dict[str, tuple[Real, Planned]] = {
    "add": (lambda a, b: a + b, ops.add),
    "subtract": (lambda a, b: a - b, ops.subtract),
    "mul": (lambda a, b: a * b, ops.mul),
}


@pytest.mark.parametrize("grads", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("dtypes", [(FP32, FP32), (BF16, BF16), (BF16, FP32), (FP32, BF16)])
@pytest.mark.parametrize("name", TWO)
def test_of_two_tensors(name, dtypes, grads):
    """Either may be frozen, and types promote."""
    real, planned = TWO[name]
    a, ours_a = pair((ROWS, WIDTH), dtypes[0], grad=grads[0])
    b, ours_b = pair((ROWS, WIDTH), dtypes[1], grad=grads[1])

    assert of_torch(between(real), a, b) == of_tape(between_on_tape(planned), ours_a, ours_b)


@pytest.mark.parametrize("grads", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", ["weight", "column"])
def test_broadcast_products(name, grads):
    """A factor for each column (a norm's weight) or each row (its variance): its gradient is a product that is summed."""
    shape = (WIDTH,) if name == "weight" else (ROWS, 1)
    a, ours_a = pair((ROWS, WIDTH), grad=grads[0])
    b, ours_b = pair(shape, grad=grads[1])

    assert of_torch(lambda a, b: a * b, a, b) == of_tape(ops.mul_broadcast, ours_a, ours_b)


@pytest.mark.parametrize("grads", [(True, True), (True, False), (False, True)])
def test_broadcast_sums(grads):
    """Positions that are added to every sequence: their gradient is summed over them."""
    a, ours_a = pair((4, ROWS, WIDTH), grad=grads[0])
    b, ours_b = pair((ROWS, WIDTH), grad=grads[1])

    assert of_torch(between(lambda a, b: a + b), a, b) == of_tape(
        between_on_tape(lambda t, a, b: ops.add_broadcast(t, a, b, 4)), ours_a, ours_b
    )


@pytest.mark.parametrize("count", [2, 3])
def test_concatenation(count):
    """Backward hands out views of one gradient, which the leaves copy."""
    pairs = [pair((ROWS, WIDTH)) for _ in range(count)]
    real = between(lambda *xs: torch.cat(xs))

    def planned(t: Tape, *xs: Tensor) -> Tensor:
        return ops.concatenate(t, xs)

    assert of_torch(real, *(x for x, _ in pairs)) == of_tape(between_on_tape(planned), *(ours for _, ours in pairs))
