"""DoRA around a dense layer against PEFT's own module on the CPU."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from planner.dtypes import DType
from planner.operations.elementwise import scale
from planner.operations.lora import linear
from planner.tensors import Tensor
from tests.live import TORCH, of_tape, of_torch, pair
from tests.operations.test_lora import B, K, S, adapted

torch = pytest.importorskip("torch")

BF16, FP32 = DType.BF16, DType.FP32


@pytest.mark.parametrize("autocast", [None, BF16], ids=["plain", "autocast"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", "none"])
@pytest.mark.parametrize(("given", "base", "adapter"), [(FP32, FP32, FP32), (BF16, BF16, BF16), (BF16, BF16, FP32)])
def test_dense_base(given, base, adapter, dropout, bias, autocast):
    """The merged weight, its norms and the identity matrix are made and kept where PEFT makes and keeps them."""
    module, layer = adapted(base, adapter, dropout=dropout, dora=True, bias=bias)
    x, ours = pair((B, S, K), given)

    def real(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", TORCH[autocast]) if autocast else nullcontext():
            return module(x * 2.0)

    def planned(t, x: Tensor) -> Tensor:
        held = scale(t, x)
        return linear(t, held, layer)

    assert of_torch(real, x) == of_tape(planned, ours, autocast=autocast)
