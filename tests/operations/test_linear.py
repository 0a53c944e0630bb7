"""Dense and quantised products against real torch, and against bitsandbytes' functions step by step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from planner.dtypes import DType
from planner.operations.elementwise import activation
from planner.operations.linear import Linear, base_linear, product
from planner.tensors import Tensor
from tests.live import TORCH, Figures, LiveStorages, leaf, of_tape, of_torch, pair

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")

BF16, FP16, FP32 = DType.BF16, DType.FP16, DType.FP32
B, S, K, M = 2, 12, 32, 48


@pytest.mark.parametrize("needs_grad", [True, False], ids=["grad", "first"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_dense_product(dtype, bias, trained, needs_grad):
    """A trained weight saves the input; an input that needs a gradient saves the weight."""
    module = torch.nn.Linear(K, M, bias=bias).to({FP32: torch.float32, BF16: torch.bfloat16}[dtype]).requires_grad_(trained)
    x, ours = pair((B, S, K), dtype, grad=needs_grad)
    weight, added = leaf(module.weight), leaf(module.bias) if bias else None

    assert of_torch(module, x) == of_tape(lambda t, x: product(t, x, weight, added, K, M), ours)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize(("given", "stored"), [(FP32, FP32), (BF16, FP32), (FP32, BF16), (BF16, BF16)])
def test_dense_product_under_autocast(given, stored, trained):
    """Operands are cast first, in the order input, weight; gradients are cast back."""
    module = torch.nn.Linear(K, M, bias=False).to({FP32: torch.float32, BF16: torch.bfloat16}[stored]).requires_grad_(trained)
    x, ours = pair((B * S, K), given)
    weight = leaf(module.weight)

    def real(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return module(F.silu(x))  # not a leaf, whose copy autocast would keep

    def planned(t, x):
        held = activation(t, x, "silu")  # as the arguments of a module's call are
        return product(t, held, weight, None, K, M)

    assert of_torch(real, x) == of_tape(planned, ours, autocast=BF16)


def four_bit(**more) -> Linear:
    return Linear(K, M, Tensor(None, K * M // 2, DType.UINT8), quantization="nf4", **more)


@pytest.mark.parametrize("nested", [True, False])
def test_four_bit_product_by_hand(nested):
    """
    bf16 in and out: forward holds the dense weight and, nested, its scales and their sum with the offset; nothing but the output is kept.

    Source:
        bitsandbytes@0.50.2, backends/cuda/ops.py, _dequant_linear_fallback; functional.py, dequantize_4bit, which adds in place.
    """
    x = Tensor(None, B * S * K, BF16, requires_grad=True)
    weight, scales = 2 * K * M, 4 * K * M // 64 * nested
    out, dx = 2 * B * S * M, 2 * B * S * K
    expected = Figures(2 * scales + weight + out, out, 2 * out + weight + max(scales, dx), dx)

    assert expected == of_tape(lambda t, x: base_linear(t, x, four_bit(nested=nested)), x)


def test_four_bit_kernel_that_reads_the_packed_weight():
    """Few tokens are multiplied without a dense weight in forward; backward makes it all the same."""
    x = Tensor(None, B * S * K, BF16, requires_grad=True)
    figures = of_tape(lambda t, x: base_linear(t, x, four_bit(fused_tokens=B * S)), x)
    out = 2 * B * S * M

    assert (out, out) == figures[:2]
    assert figures.backward >= 2 * out + 2 * K * M


def test_four_bit_casts_to_its_compute_dtype_and_back():
    """An fp32 residual stream: a bf16 input and output beside the fp32 ones, and no weight that outlives the product."""
    x = Tensor(None, B * S * K, FP32, requires_grad=True)
    figures = of_tape(lambda t, x: base_linear(t, x, four_bit(nested=False)), x)

    assert figures.kept == 4 * B * S * M
    assert max(2 * B * S * K + 2 * K * M + 2 * B * S * M, 2 * B * S * K + 6 * B * S * M) == figures.forward


def test_int8_quantises_its_rows():
    """
    A bf16 input is quantised from an fp16 copy with a statistic a row, while its magnitudes and the mask of outliers are alive; the
    int32 product becomes fp16, then bf16.
    """
    x = Tensor(None, B * S * K, BF16, requires_grad=True)
    layer = Linear(K, M, Tensor(None, K * M, DType.INT8), quantization="int8")
    n, tokens = B * S * K, B * S
    quantising, multiplying = n * (2 + 1 + 2 + 1) + 4 * tokens, n + 4 * tokens + tokens * M * (4 + 2 + 2)
    figures = of_tape(lambda t, x: base_linear(t, x, layer), x)

    assert figures.forward == max(quantising, multiplying)
    assert figures.backward == 2 * tokens * M * 2 + 2 * K * M + 2 * n


def test_int8_keeps_its_input():
    """LLM.int8 holds x itself by a plain attribute; what it quantises is gone when it returns."""
    x, out = Tensor(None, B * S * K, FP16, requires_grad=True), 2 * B * S * M
    layer = Linear(K, M, Tensor(None, K * M, DType.INT8), quantization="int8")
    figures = of_tape(lambda t, x: base_linear(t, activation(t, x, "silu"), layer), x)

    assert 2 * B * S * K + out == figures.kept


NEEDS_GRAD = (True, False, None, False, None)  # of the input alone: the base is frozen


def real_backward(function: str, context: Any, grad_y: torch.Tensor) -> int:
    """The most that bitsandbytes' own backward holds beside the gradient that it is given."""
    bnb = pytest.importorskip("bitsandbytes")
    with LiveStorages() as live:
        getattr(bnb.autograd._functions, function).backward(context, grad_y)
    return live.peak


@pytest.mark.parametrize("state_dtype", [BF16, FP32, FP16])
@pytest.mark.parametrize("nested", [False, True])
def test_four_bit_backward_holds_what_the_real_one_holds(nested, state_dtype):
    """The weight in the type that was quantised with its scales, a cast where the gradient has another type, and the input's gradient."""
    bnb = pytest.importorskip("bitsandbytes")
    T, N, K = 2, 64, 256
    packed, state = bnb.functional.quantize_4bit(torch.randn(N, K).to(TORCH[state_dtype]), quant_type="nf4", compress_statistics=nested)
    context = SimpleNamespace(is_empty=False, needs_input_grad=NEEDS_GRAD, tensors=(None, packed), state=state)
    layer = Linear(K, N, Tensor(None, N * K // 2, DType.UINT8), quantization="nf4", nested=nested, quant_dtype=state_dtype)
    figures = of_tape(lambda t, x: base_linear(t, x, layer), Tensor(None, T * K, BF16, requires_grad=True))
    out = 2 * T * N  # the output, and the gradient that backward starts from

    assert figures.backward - 2 * out == real_backward("MatMul4Bit", context, torch.randn(T, N).to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_int8_backward_holds_what_the_real_one_holds(dtype):
    """The weight in the type of the input, its scales in fp32 while it is made, and the input's gradient."""
    bnb = pytest.importorskip("bitsandbytes")
    T, N, K = 32, 64, 256
    values, scales, _ = bnb.functional.int8_vectorwise_quant(torch.randn(N, K, dtype=torch.float16))
    context = SimpleNamespace(
        is_empty=False, needs_input_grad=NEEDS_GRAD, tensors=(None, None, None), tensor_states=(None, None),
        state=SimpleNamespace(CB=values, SCB=scales), dtype_A=TORCH[dtype], grad_shape=(T, K),
    )  # fmt: skip
    layer = Linear(K, N, Tensor(None, N * K, DType.INT8), quantization="int8")
    figures = of_tape(lambda t, x: base_linear(t, x, layer), Tensor(None, T * K, dtype, requires_grad=True))
    out = 2 * T * N

    assert figures.backward - 2 * out == real_backward("MatMul8bitLt", context, torch.randn(T, N).to(TORCH[dtype]))
