"""bitsandbytes' layers on ghosts, against bitsandbytes on the CPU and the formula of its fused kernel."""

from __future__ import annotations

from typing import Any

import pytest

from planner.dtypes import DType
from planner.formulas.four_bit_kernel import MULTIPROCESSORS, reads_packed_weight

torch = pytest.importorskip("torch")
bnb = pytest.importorskip("bitsandbytes")
pytest.importorskip("transformers")

from planner.engines.running.tensors import name_model  # noqa: E402
from planner.engines.traced.run import recording  # noqa: E402
from planner.ledger import Category  # noqa: E402

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
SHAPES = [(64, 64), (48, 100), (3, 3), (5, 13), (4096, 33), (100, 1000)]


def nbytes(x: Any) -> int:
    """Bytes of a tensor's storage."""
    return x.untyped_storage().nbytes()


def statistics(packed: Any, state: Any) -> dict[str, int]:
    """Bytes of a 4-bit weight and of everything that is needed to read it."""
    found = {"packed": packed, "absmax": state.absmax, "code": state.code, "offset": state.offset}
    if state.state2 is not None:
        found |= {"state2.absmax": state.state2.absmax, "state2.code": state.state2.code}
    return {name: nbytes(x) for name, x in found.items() if x is not None}


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_four_bit_weight_is_the_real_one(shape: tuple[int, int], dtype: Any, kind: str, double: bool) -> None:
    """The packed weight and each of its statistics have the bytes that bitsandbytes gives them on the CPU."""
    weight = torch.randn(*shape).to(dtype)
    packed, real = bnb.functional.quantize_4bit(weight, quant_type=kind, compress_statistics=double)
    with recording((8, 0)):
        layer = bnb.nn.Linear4bit(shape[1], shape[0], bias=False, quant_type=kind, compress_statistics=double, device="cuda")
        moved = bnb.nn.Params4bit(
            torch.empty(*shape, dtype=dtype, device="cuda"), False, quant_type=kind, compress_statistics=double, module=layer
        ).to("cuda")
        found = statistics(moved, moved.quant_state)

    assert statistics(packed, real) == found


@pytest.mark.parametrize("shape", SHAPES)
def test_an_int8_weight_is_the_real_one(recorder: Any, shape: tuple[int, int]) -> None:
    """A byte an element, and a number in fp32 for each row."""
    rows, scales, _ = bnb.functional.int8_vectorwise_quant(torch.randn(*shape, dtype=FP16))
    layer = bnb.nn.Linear8bitLt(shape[1], shape[0], bias=False, has_fp16_weights=False).to("cuda")

    assert (nbytes(rows), nbytes(scales)) == (nbytes(layer.weight), nbytes(layer.weight.SCB))
    assert layer.weight.dtype is torch.int8
    assert layer.weight.is_cuda


def four_bit(inputs: int, outputs: int) -> Any:
    """A quantised linear on the card."""
    return bnb.nn.Linear4bit(inputs, outputs, bias=False, compute_dtype=BF16, quant_type="nf4").to("cuda")


def dequantised(recorder: Any, nbytes_of_weight: int, begin: int) -> int:
    """How many whole weights were made since."""
    return sum(size == nbytes_of_weight for size in recorder.history.sizes[begin:])


PRODUCTS = [(1, 256, 512), (4, 512, 256), (8, 1024, 1024), (32, 1024, 1024), (64, 1024, 4096), (128, 4096, 1024), (1024, 1024, 1088)]
CAPABILITIES = sorted(MULTIPROCESSORS)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_product_dequantises_where_the_formula_says(capability: tuple[int, int]) -> None:
    """By tokens, shape and card: the installed code and the independent table of its thresholds agree."""
    expected, found = [], []
    with recording(capability) as recorder, torch.no_grad():
        for tokens, inputs, outputs in PRODUCTS:
            layer, x = four_bit(inputs, outputs), torch.empty(tokens, inputs, dtype=BF16, device="cuda")
            begin = len(recorder.history.sizes)
            layer(x)
            found.append(dequantised(recorder, 2 * inputs * outputs, begin) == 0)
            expected.append(reads_packed_weight(tokens, outputs, inputs, DType.BF16, capability))

    assert expected == found


def test_backward_dequantises_and_keeps_nothing(recorder: Any) -> None:
    """One whole weight in backward; the graph keeps no input, since the weight is not trained."""
    layer, x = four_bit(256, 512), torch.randn(1, 256, dtype=BF16, device="cuda").requires_grad_()
    begin = len(recorder.history.sizes)
    y = layer(x * 1)
    kept = [recorder.history.sizes[i] for i in recorder.live.values() if i >= begin]
    middle = len(recorder.history.sizes)
    y.backward(torch.ones_like(y))

    assert dequantised(recorder, 2 * 256 * 512, begin) == dequantised(recorder, 2 * 256 * 512, middle) == 1
    assert kept == [2 * 512]
    assert tuple(x.grad.shape) == (1, 256)


def test_an_int8_product_runs_in_both_directions(recorder: Any) -> None:
    """Rows of x in int8 with a scale each, an int32 product, and in backward the whole weight in x's type."""
    layer = bnb.nn.Linear8bitLt(64, 128, bias=False, has_fp16_weights=False, threshold=6.0).to("cuda")
    x = torch.randn(10, 64, dtype=BF16, device="cuda").requires_grad_()
    begin = len(recorder.history.sizes)
    y = layer(x)
    forward = recorder.history.sizes[begin:]
    begin = len(recorder.history.sizes)
    y.sum().backward()

    assert (y.dtype, tuple(y.shape)) == (BF16, (10, 128))
    assert {10 * 64, 10 * 4, 4 * 10 * 128} <= set(forward)
    assert 2 * 64 * 128 in recorder.history.sizes[begin:]
    assert x.grad.dtype is BF16


def test_parts_of_a_weight_are_named(recorder: Any) -> None:
    """Packed weights are parameters, their statistics are told apart from them."""
    name_model(torch.nn.Sequential(four_bit(256, 512)), recorder)
    history = recorder.history
    named = {f"{history.scopes[i]}.{history.names[i]}": history.categories[i] for i in recorder.live.values() if history.scopes[i] == "0"}

    assert named == {
        "0.weight": Category.PARAMETER,
        **{f"0.weight.quant_state.{part}": Category.QUANT_STATE for part in ("absmax", "code", "offset")},
        **{f"0.weight.quant_state.state2.{part}": Category.QUANT_STATE for part in ("absmax", "code")},
    }


def test_real_layers_are_left_alone() -> None:
    """During a trace and after it bitsandbytes quantises tensors of the CPU as ever."""
    weight = torch.randn(64, 64)
    packed, state = bnb.functional.quantize_4bit(weight)
    with recording((8, 0)):
        inside, _ = bnb.functional.quantize_4bit(weight)
    after, state_after = bnb.functional.quantize_4bit(weight)

    assert torch.equal(packed, inside)
    assert torch.equal(packed, after)
    assert torch.equal(bnb.functional.dequantize_4bit(packed, state), bnb.functional.dequantize_4bit(after, state_after))
    assert type(bnb.nn.Params4bit(weight, requires_grad=False)) is bnb.nn.Params4bit


def test_a_product_of_many_tokens_on_its_way(recorder: Any) -> None:
    """
    Its dequantised scales live beside their sum with the offset until it returns, and cuBLAS takes its workspace inside it, for good.

    Source:
        bitsandbytes@0.50.2, backends/cuda/ops.py, _dequant_linear_fallback: `absmax_dq` and `absmax` are two names.
    """
    n, tokens = 256 * 512, 4096
    layer = bnb.nn.Linear4bit(512, 256, bias=False, quant_type="nf4", compress_statistics=True, compute_dtype=BF16, device="cuda")
    layer.weight = bnb.nn.Params4bit(torch.empty(256, 512, dtype=BF16, device="cuda"), False, quant_type="nf4", module=layer).to("cuda")
    history = recorder.history
    first = len(history.sizes)
    with torch.no_grad():
        layer(torch.empty(tokens, 512, dtype=BF16, device="cuda"))
    born = range(first, len(history.sizes))
    scales = [i for i in born if history.sizes[i] == 4 * n // 64]
    output = next(i for i in born if history.sizes[i] == 2 * tokens * 256)
    workspace = next(i for i in born if history.names[i].startswith("cuBLAS"))
    at = history.events.index

    assert len(scales) == 2
    assert all(at(i) < at(output) < at(~i) for i in scales)
    assert at(output) < at(workspace) < min(at(~i) for i in scales)
    assert history.categories[workspace] is Category.WORKSPACE
    assert ~workspace not in history.events
