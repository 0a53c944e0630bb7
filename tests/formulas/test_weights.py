"""Weights at rest and their temporaries, against the real bitsandbytes."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.dtypes import DType
from planner.formulas import weights
from planner.formulas.blocks import TensorBytes, Tensors, total_allocated, total_bytes
from planner.formulas.four_bit_kernel import reads_packed_weight
from tests.live import LiveStorages

torch = pytest.importorskip("torch")
bnb = pytest.importorskip("bitsandbytes")

NEEDS_GRAD = (True, False, None, False, None)  # of the input alone: the base is frozen
TORCH_DTYPES = {DType.BF16: torch.bfloat16, DType.FP16: torch.float16, DType.FP32: torch.float32}


def nbytes(tensor: Any) -> int:
    return tensor.numel() * tensor.element_size()


def sizes(tensors: Tensors) -> dict[str, int]:
    return {tensor.name: tensor.nbytes for tensor in tensors}


def real_four_bit(shape: tuple[int, ...], quant_type: str, double_quant: bool) -> dict[str, int]:
    """Every tensor that bitsandbytes keeps for one weight, by its name."""
    packed, state = bnb.functional.quantize_4bit(torch.randn(shape), quant_type=quant_type, compress_statistics=double_quant)
    kept = {"weight": nbytes(packed), "quant_state.absmax": nbytes(state.absmax), "quant_state.code": nbytes(state.code)}
    if double_quant:
        kept["quant_state.offset"] = nbytes(state.offset)
        kept["quant_state.state2.absmax"] = nbytes(state.state2.absmax)
        kept["quant_state.state2.code"] = nbytes(state.state2.code)
        assert state.state2.code.data_ptr() != bnb.functional.name2qmap["dynamic"].data_ptr()
        assert nbytes(bnb.functional.name2qmap["dynamic"]) == weights.DYNAMIC_MAP.nbytes
    return kept


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.sampled_from(["nf4", "fp4"]),
    st.booleans(),
)
def test_a_four_bit_weight_is_what_bitsandbytes_keeps(shape: tuple[int, int], quant_type: str, double_quant: bool) -> None:
    """Every tensor, to the byte, for shapes of any parity."""
    formula = weights.four_bit_weight(shape[0] * shape[1], double_quant=double_quant)

    assert sizes(formula) == real_four_bit(shape, quant_type, double_quant)


@pytest.mark.parametrize("shape", [(1024, 4096), (5, 13), (3, 3), (1, 1), (2560, 9728)])
@pytest.mark.parametrize("double_quant", [False, True])
def test_four_bit_weights_of_real_models(shape: tuple[int, int], double_quant: bool) -> None:
    """Published widths, and the odd shapes that round up."""
    formula = weights.four_bit_weight(shape[0] * shape[1], double_quant=double_quant)

    assert sizes(formula) == real_four_bit(shape, "nf4", double_quant)


def test_llama_2_70b_layer_in_nf4() -> None:
    """One layer of seven linears: the packed weights and statistics, and 2,048 allocated bytes of tables each."""
    D, F, KV = 8192, 28672, 1024
    linears = [D * D, D * KV, D * KV, D * D, D * F, D * F, F * D]
    tables = ("quant_state.code", "quant_state.offset", "quant_state.state2.code")
    tensors = [tensor for numel in linears for tensor in weights.four_bit_weight(numel, double_quant=True)]

    assert sum(linears) == 855_638_016
    assert total_bytes(t for t in tensors if t.name not in tables) == 441_397_248
    assert total_allocated(t for t in tensors if t.name in tables) == 14_336


def test_formulas_take_arrays_of_sizes() -> None:
    """A grid of sizes gives a grid of bytes, element by element the same."""
    sizes = np.array([1, 63, 64, 65, 16_384, 16_385, 99_999_999])
    for double_quant in (False, True):
        grid = weights.four_bit_weight(sizes, double_quant=double_quant)  # type: ignore[arg-type]
        single = [weights.four_bit_weight(int(n), double_quant=double_quant) for n in sizes]

        assert np.broadcast_to(total_allocated(grid), sizes.shape).tolist() == [total_allocated(t) for t in single]


@pytest.mark.parametrize("shape", [(7, 5), (256, 128)])
def test_an_int8_weight_is_what_bitsandbytes_keeps(shape: tuple[int, int]) -> None:
    """The values and one scale a row; the module's state aliases them."""
    layer = bnb.nn.Linear8bitLt(shape[1], shape[0], bias=False, has_fp16_weights=False)
    quantised = layer.weight._quantize("cpu")
    layer.init_8bit_state()

    assert sizes(weights.int8_weight(*shape)) == {"weight": nbytes(quantised.data), "weight.SCB": nbytes(layer.state.SCB)}
    assert layer.state.CB.data_ptr() == quantised.data.data_ptr()


def test_a_dense_weight_is_its_elements() -> None:
    """Elements times the size of one."""
    assert weights.dense_weight(12, DType.BF16) == (TensorBytes("weight", nbytes(torch.zeros(3, 4, dtype=torch.bfloat16))),)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP32])
def test_loading_holds_what_bitsandbytes_holds_while_it_quantises(double_quant: bool, transposed: bool, dtype: DType) -> None:
    """The real conversion: at its peak live the finished weight and the formula's temporaries, and afterwards only the weight."""
    K, N = 256, 1024
    bnb.functional.quantize_blockwise(torch.ones(1))  # the process-wide map is made once
    with LiveStorages() as live:
        source = torch.zeros(N, K, dtype=TORCH_DTYPES[dtype])
        value = source.T if transposed else source
        weight = bnb.nn.Params4bit(value, quant_type="nf4", compress_statistics=double_quant)._quantize("cpu")
        peak = live.peak
        del source, value
        finished = weights.four_bit_weight(N * K, double_quant=double_quant)
        temporary = weights.four_bit_loading(N * K, dtype, double_quant=double_quant, transposed=transposed)

        assert live.nbytes == total_bytes(finished)
        assert peak == total_bytes(finished) + total_bytes(temporary)
        assert weight.quant_state.nested is double_quant


@lru_cache
def real_kernel_choice() -> Any:
    """bitsandbytes' own choice of kernel, taken out of its file: the CUDA backend cannot be imported without CUDA."""
    source = (Path(bnb.__file__).parent / "backends/cuda/ops.py").read_text()
    function = next(
        node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "_gemm_4bit_use_custom_cuda"
    )
    function.decorator_list = []
    card = SimpleNamespace()
    scope = {"torch": torch, "_GEMM_4BIT_CUSTOM_FLOOR_M": 4, "_gpu_dispatch_props": lambda _: (card.sms, *card.capability)}
    exec(compile(ast.Module([function], []), "ops.py", "exec"), scope)  # noqa: S102

    def choose(tokens: int, outputs: int, inputs: int, dtype: DType, capability: tuple[int, int], sms: int) -> bool:
        if tokens > 1536 or inputs % 64:
            return False
        card.sms, card.capability = sms, capability
        return bool(scope["_gemm_4bit_use_custom_cuda"](0, TORCH_DTYPES[dtype], tokens, outputs, inputs))

    return choose


WIDTHS = st.sampled_from([64, 128, 256, 576, 704, 896, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 8192, 11008, 14336, 28672])
CARDS = st.sampled_from([
    ((6, 1), 20), ((7, 0), 80), ((7, 5), 40), ((8, 0), 108), ((8, 6), 84), ((8, 6), 28), ((8, 7), 16), ((8, 9), 128),
    ((8, 9), 58), ((9, 0), 132), ((10, 0), 148), ((11, 0), 20), ((12, 0), 170), ((12, 0), 36), ((12, 1), 48),
])  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(
    st.one_of(st.integers(1, 40), st.integers(1, 1600)),
    st.one_of(WIDTHS, st.integers(1, 20_000)),
    WIDTHS,
    st.sampled_from([DType.BF16, DType.FP16, DType.FP32]),
    CARDS,
)
def test_the_fused_kernel_is_chosen_as_bitsandbytes_chooses(
    tokens: int, outputs: int, inputs: int, dtype: DType, card: tuple[tuple[int, int], int]
) -> None:
    """The same answer as bitsandbytes' own function, on every architecture that it knows."""
    capability, sms = card
    expected = real_kernel_choice()(tokens, outputs, inputs, dtype, capability, sms)

    assert reads_packed_weight(tokens, outputs, inputs, dtype, capability, sms) is expected


def test_training_batches_dequantise() -> None:
    """Above 512 tokens a weight of 4 Mi elements or more is dequantised on every card."""
    for capability in [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (12, 1)]:
        assert not reads_packed_weight(513, 4096, 4096, DType.BF16, capability)
        assert reads_packed_weight(4, 4096, 4096, DType.BF16, capability)
    assert not reads_packed_weight(4, 4096, 4000, DType.BF16, (8, 0))
