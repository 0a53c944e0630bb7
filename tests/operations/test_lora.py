"""LoRA around a dense layer against PEFT's own module on the CPU."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from planner.dtypes import DType
from planner.operations.elementwise import scale
from planner.operations.linear import Linear, Lora
from planner.operations.lora import linear
from planner.tensors import Tensor
from tests.live import TORCH, leaf, of_tape, of_torch, pair

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
layers = pytest.importorskip("peft.tuners.lora.layer")

BF16, FP32 = DType.BF16, DType.FP32
B, S, K, M, R = 2, 12, 32, 48, 4


class NativeDropout(torch.nn.Module):
    """What `nn.Dropout` runs on CUDA: one kernel, and a mask of one byte an element."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.native_dropout(x, 0.1, train=True)[0]


def adapted(base: DType, adapter: DType, *, dropout: bool, dora: bool = False, bias: bool = False) -> tuple[torch.nn.Module, Linear]:
    """PEFT's wrapper around a frozen linear, and its double."""
    inner = torch.nn.Linear(K, M, bias=bias).to(TORCH[base]).requires_grad_(False)
    config = peft.LoraConfig(r=R, lora_alpha=8, use_dora=dora, lora_dropout=0.1 if dropout else 0.0)
    module = layers.Linear(inner, "default", config, r=R, lora_alpha=8)
    for part in (module.lora_A, module.lora_B, module.lora_magnitude_vector):
        part.to(TORCH[adapter])
    if dropout:
        module.lora_dropout["default"] = NativeDropout()
    magnitude = leaf(module.lora_magnitude_vector["default"].weight) if dora else None
    lora = Lora(
        R, leaf(module.lora_A["default"].weight), leaf(module.lora_B["default"].weight), 0.1 if dropout else 0.0, magnitude
    )
    return module, Linear(K, M, leaf(inner.weight), leaf(inner.bias) if bias else None, lora=lora)


@pytest.mark.parametrize("autocast", [None, BF16], ids=["plain", "autocast"])
@pytest.mark.parametrize("needs_grad", [True, False], ids=["grad", "first"])
@pytest.mark.parametrize("dropout", [True, False], ids=["dropout", "none"])
@pytest.mark.parametrize(("given", "base", "adapter"), [(FP32, FP32, FP32), (BF16, BF16, FP32), (BF16, BF16, BF16), (FP32, BF16, FP32)])
def test_dense_base(given, base, adapter, dropout, needs_grad, autocast):
    """Bytes in forward, kept, in backward and left are PEFT's, where torch multiplies those types at all."""
    if autocast is None and given is not base:
        pytest.skip("torch refuses to multiply two types outside autocast")
    module, layer = adapted(base, adapter, dropout=dropout)
    x, ours = pair((B, S, K), given, grad=needs_grad)

    def real(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", TORCH[autocast]) if autocast else nullcontext():
            return module(x * 2.0)

    def planned(t, x: Tensor) -> Tensor:
        held = scale(t, x)  # as the arguments of a module's call are
        return linear(t, held, layer)

    assert of_torch(real, x) == of_tape(planned, ours, autocast=autocast)
