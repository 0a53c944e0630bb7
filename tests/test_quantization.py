"""
Quantisation in NumPy against bitsandbytes itself on a CPU, bit for bit, against published tables, and against brute force.
"""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from planner import quantization as q
from planner.dtypes import DType
from planner.errors import InvalidArrayError
from planner.formulas.weights import CODE_BYTES, NESTED_CODE_BYTES, SCALAR_BYTES, four_bit_weight

torch = pytest.importorskip("torch")
functional = pytest.importorskip("bitsandbytes").functional

TYPES = {DType.FP32: torch.float32, DType.FP16: torch.float16, DType.BF16: torch.bfloat16}
# arXiv 2305.14314, appendix E, as printed.
PAPER_NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
# bitsandbytes@0.50.2, csrc/kernels.cu, dQuantizeNF4: what CUDA compares with.
CUDA_NF4_PIVOTS = [
    -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544, -0.23460740596055984, -0.13791173323988914,
    -0.045525018125772476, 0.03979014977812767, 0.1202552504837513, 0.2035212516784668, 0.2920137718319893, 0.3893125355243683,
    0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
]  # fmt: skip

ordinary = st.floats(-60000, 60000, width=16).filter(lambda value: value == 0 or abs(value) > 1e-4)
weights = arrays_of.arrays(np.float32, st.integers(1, 700), elements=st.one_of(ordinary, st.just(0.0)), fill=st.just(0.25))
tiny = arrays_of.arrays(np.float32, st.integers(1, 300), elements=st.floats(-(2.0**-119), 2.0**-119, width=32))
reals = arrays_of.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6))


@pytest.fixture(autouse=True, scope="module")
def eager():
    """bitsandbytes' compiled fallbacks run as they are written: nothing is compiled."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def pair(values, dtype: DType):
    """The same values for bitsandbytes, in a type, and for us."""
    theirs = torch.tensor(values).to(TYPES[dtype])
    return theirs, (theirs.float() if dtype is DType.BF16 else theirs).numpy()


def numbers(tensor) -> np.ndarray:
    """What bitsandbytes returned, where bfloat16 is widened."""
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def bits(array: np.ndarray) -> list[int]:
    """The bits of each number, so that 0.0 is not -0.0."""
    return array.reshape(-1).view(f"i{array.dtype.itemsize}").tolist()


def same_blocks(state, blocks: q.Blocks) -> None:
    """A state of bitsandbytes' 8-bit blocks and ours, statistics and levels."""
    assert bits(state.absmax.numpy()) == bits(blocks.absmax)
    assert bits(state.code.numpy()) == bits(blocks.levels)
    assert state.blocksize == blocks.block_elements


def check_8bit(values, dtype: DType, block_elements: int = 256) -> None:
    """Codes, statistics and what comes back are bitsandbytes', bit for bit."""
    theirs, ours = pair(values, dtype)
    codes, state = functional.quantize_blockwise(theirs, blocksize=block_elements)
    blocks = q.quantize_blockwise(ours, state.code.numpy(), block_elements)

    assert codes.numpy().tolist() == blocks.codes.tolist()
    same_blocks(state, blocks)
    for wanted, their_type in TYPES.items():
        state.dtype = their_type
        back = q.dequantize_blockwise(blocks, wanted)
        assert bits(numbers(functional.dequantize_blockwise(codes, state))) == bits(back)
        assert back.shape == blocks.codes.shape


def check_4bit(values, dtype: DType, kind: str, *, double_quant: bool, block_elements: int = 64) -> None:
    """Bytes, statistics and what comes back are bitsandbytes', bit for bit; but of FP4, the sign of a zero."""
    theirs, ours = pair(values, dtype)
    packed, state = functional.quantize_4bit(theirs, quant_type=kind, compress_statistics=double_quant, blocksize=block_elements)
    offset = state.offset.item() if double_quant else None
    tensor = q.quantize_4bit(ours, kind, block_elements=block_elements, double_quant=double_quant, offset=offset)

    assert packed.numpy().reshape(-1).tolist() == tensor.packed.tolist()
    assert bits(state.code.numpy()) == bits(tensor.tensors["quant_state.code"])
    if double_quant:
        assert state.absmax.numpy().tolist() == tensor.absmax.blocks.codes.tolist()
        same_blocks(state.state2, tensor.absmax.blocks)
    else:
        assert bits(state.absmax.numpy()) == bits(tensor.absmax)
    for wanted, their_type in TYPES.items():
        state.dtype = their_type
        back = q.dequantize_4bit(tensor, wanted)
        expected = numbers(functional.dequantize_4bit(packed, state))
        assert bits(expected + (kind == "fp4") * np.zeros_like(expected)) == bits(back + (kind == "fp4") * np.zeros_like(back))
        assert back.shape == np.shape(values)


# Linear grids


def test_the_textbook_weights():
    """Eight weights at four bits, worked by hand: s = 1.75 / 15, z = round(0.8 / s) = 7."""
    values = [-0.8, -0.45, -0.12, 0.0, 0.07, 0.33, 0.61, 0.95]
    grid = q.linear_grid(values, 4)

    assert (grid.zero_point, grid.lowest, grid.highest) == (7, 0, 15)
    assert grid.scale == pytest.approx(1.75 / 15, rel=1e-15)
    assert grid.quantize(values).tolist() == [0, 3, 6, 7, 8, 10, 12, 15]
    assert grid.dequantize([0, 7, 15]) == pytest.approx([-7 * 1.75 / 15, 0, 8 * 1.75 / 15])


@pytest.mark.parametrize(("bits", "scale", "error"), [(4, 0.133, 0.067), (8, 0.0078, 0.004)])
def test_the_textbook_steps(bits, scale, error):
    """On [-1, 1]: INT4 has steps of 0.133 and errors up to 0.067, INT8 0.0078 and 0.004."""
    grid = q.linear_grid([-1.0, 1.0], bits)

    assert grid.scale == pytest.approx(scale, abs=5e-4 if bits == 4 else 5e-5)
    assert grid.error_bound == pytest.approx(error, abs=5e-4)


def test_a_symmetric_grid():
    """Absmax quantisation gives up one code: 127 steps on either side."""
    grid = q.linear_grid([-2.54, 1.0], 8, symmetric=True)

    assert (grid.zero_point, grid.lowest, grid.highest) == (0, -127, 127)
    assert grid.scale == pytest.approx(0.02)
    assert grid.quantize([-2.54, 0.0, 0.01, 0.03, 1.0, 99.0]).tolist() == [-127, 0, 0, 2, 50, 127]


@given(values=reals, bits=st.integers(2, 16), symmetric=st.booleans())
def test_no_error_exceeds_half_a_step(values, bits, symmetric):
    """Inside the range, ends included, a value comes back within half a step; zero comes back as zero."""
    grid = q.linear_grid(values, bits, symmetric=symmetric)
    codes = grid.quantize(values)
    rounding = 2**bits * np.finfo(np.float64).eps * grid.scale

    assert np.abs(grid.dequantize(codes) - values).max() <= grid.error_bound + rounding
    assert grid.lowest <= codes.min() and codes.max() <= grid.highest
    assert grid.dequantize(grid.quantize([0.0])) == [0.0]


@given(values=reals, bits=st.integers(2, 6), symmetric=st.booleans())
def test_no_other_code_is_nearer(values, bits, symmetric):
    """Brute force over all codes finds none nearer."""
    grid = q.linear_grid(values, bits, symmetric=symmetric)
    every = grid.dequantize(np.arange(grid.lowest, grid.highest + 1))
    best = np.abs(values[:, None] - every).min(axis=1)

    assert np.abs(grid.dequantize(grid.quantize(values)) - values) == pytest.approx(best, abs=1e-9 * grid.scale)


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [5e-324, 0.0], [3.0], [-3.0], [5.0, 6.0], [1e308, -1e308]])
@pytest.mark.parametrize("symmetric", [False, True])
def test_ranges_without_width_have_a_grid(values, symmetric):
    """Zeros, constants, ranges beside zero, and the widest."""
    grid = q.linear_grid(values, 8, symmetric=symmetric)

    assert np.abs(grid.dequantize(grid.quantize(values)) - values).max() <= grid.error_bound * (1 + 1e-12)


# Levels


def test_midpoints_halve_the_probability_of_their_bins():
    """Below each of the 16 textbook levels lie (2i + 1) / 32 of a normal distribution."""
    levels = q.midpoint_normal_levels(4)

    assert [round(NormalDist().cdf(level) * 32, 9) for level in levels] == list(range(1, 32, 2))
    assert [round(levels[i], 3) for i in (0, 7, 8, 15)] == [-1.863, -0.078, 0.078, 1.863]
    assert (levels == -levels[::-1]).all()


def test_qlora_appendix_e():
    """NF4 is the table that the paper prints, that the kernels hold, and that the rule makes: the same bits."""
    shipped = functional.get_4bit_type("nf4", device="cpu").numpy()

    assert q.nf4_levels().tolist() == PAPER_NF4
    assert bits(q.nf4_levels()) == bits(shipped)
    assert bits(q.offset_normal_levels()) == bits(shipped)


def test_the_offset_is_a_mean_of_two_rules():
    """0.9677083 is one less the mean of half a bin of 15 and half a bin of 16."""
    assert round(1 - (1 / 30 + 1 / 32) / 2, 7) == 0.9677083


def test_cuda_compares_with_the_middles_of_nf4():
    """The 15 constants of the CUDA kernel are the middles of neighbouring levels."""
    levels = q.nf4_levels()

    assert ((levels[:-1] + levels[1:]) / np.float32(2)).tolist() == pytest.approx(CUDA_NF4_PIVOTS, abs=1e-7)


def test_fp4_levels():
    """FP4 by code is bitsandbytes'; but for its subnormal it has the values of the floating-point rule, and of E2M1."""
    made = functional.create_fp8_map(signed=True, exponent_bits=2, precision_bits=1, total_bits=4).tolist()
    ocp_e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    levels = np.unique(np.abs(q.fp4_levels())).tolist()

    assert bits(q.fp4_levels()) == bits(functional.get_4bit_type("fp4", device="cpu").numpy())
    assert [level * 192 for level in levels][:2] == pytest.approx([0, 1])
    assert levels[2:] == [level for level in sorted(set(made)) if level > 0][1:]
    assert levels[2:] == pytest.approx([level / 6 for level in ocp_e2m1][2:])


def test_the_dynamic_map():
    """All 256 levels are bitsandbytes', to the last bit on CPUs that fuse multiplication and addition."""
    shipped = functional.create_dynamic_map().numpy()

    np.testing.assert_array_max_ulp(q.dynamic_map(), shipped, maxulp=1)
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch.linspace rounds otherwise here")
    assert bits(q.dynamic_map()) == bits(shipped)


# Blocks


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=20, deadline=None)
@given(values=weights, block_elements=st.sampled_from([64, 256]))
def test_8_bits_equal_bitsandbytes(dtype, values, block_elements):
    """Blocks of any values and sizes, in all three types."""
    check_8bit(values, dtype, block_elements)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=12, deadline=None)
@given(values=weights, block_elements=st.sampled_from([32, 64, 128]))
def test_4_bits_equal_bitsandbytes(dtype, kind, double_quant, values, block_elements):
    """Weights of any values and sizes, in all three types, with plain and doubly quantised statistics."""
    check_4bit(values, dtype, kind, double_quant=double_quant, block_elements=block_elements)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 127, 4096, 16384, 16385, 40001])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bell_shaped_weights_equal_bitsandbytes(kind, size):
    """Normal weights around the block sizes, even and odd, up to several blocks of statistics."""
    values = np.random.default_rng(size).normal(0, 0.02, size).astype(np.float32)

    check_8bit(values, DType.FP32)
    check_4bit(values, DType.BF16, kind, double_quant=True)
    check_4bit(values, DType.FP32, kind, double_quant=False)


@pytest.mark.parametrize("constant", [0.0, 1.0, -0.3, 60000.0])
@pytest.mark.parametrize("size", [64, 100, 256, 300])
def test_constants_equal_bitsandbytes(constant, size):
    """Zeros and constants, in whole and in short blocks."""
    values = np.full(size, constant, np.float32)

    check_8bit(values, DType.FP16)
    check_4bit(values, DType.FP32, "nf4", double_quant=True)
    check_4bit(values, DType.FP16, "fp4", double_quant=False)


def test_matrices_equal_bitsandbytes():
    """Blocks run along the flattened weight; the shape comes back."""
    values = np.random.default_rng(0).normal(size=(6, 128)).astype(np.float32)

    check_8bit(values, DType.BF16)
    check_4bit(values, DType.FP16, "nf4", double_quant=True)


def test_rows_need_not_end_with_blocks():
    """A weight with rows of 96 is the flat one in another shape."""
    values = np.random.default_rng(0).normal(size=(4, 96)).astype(np.float32)
    matrix, flat = q.quantize_4bit(values), q.quantize_4bit(values.reshape(-1))

    assert matrix.packed.tolist() == flat.packed.tolist()
    assert q.dequantize_4bit(matrix).tolist() == q.dequantize_4bit(flat).reshape(4, 96).tolist()


@settings(max_examples=40, deadline=None)
@given(values=tiny)
def test_the_smallest_numbers_equal_bitsandbytes(values):
    """Codes and statistics of subnormal numbers, whose inverse scale overflows."""
    theirs, ours = pair(values, DType.FP32)
    codes, state = functional.quantize_blockwise(theirs, blocksize=256)
    packed, state_4bit = functional.quantize_4bit(theirs, quant_type="nf4")

    assert codes.numpy().tolist() == q.quantize_blockwise(ours, state.code.numpy()).codes.tolist()
    assert packed.numpy().reshape(-1).tolist() == (tensor := q.quantize_4bit(ours)).packed.tolist()
    assert bits(state_4bit.absmax.numpy()) == bits(tensor.absmax)


def test_each_of_the_65536_points_is_bitsandbytes():
    """Maps that are dense around one value after the other show every point's code, and the values between two points."""
    points = np.float32(-1) + np.arange(0, 2 * 65536, 2, dtype=np.float32) / np.float32(65535)
    for begin in range(0, 65536 - 255, 255):
        levels = points[begin : begin + 256]
        middles = (levels[:-1] + levels[1:]) / 2
        values = np.concatenate([levels, middles, np.nextafter(middles, 2), np.nextafter(middles, -2), [1]]).astype(np.float32)
        codes, _ = functional.quantize_blockwise(torch.from_numpy(values), code=torch.from_numpy(levels), blocksize=len(values))

        assert codes.numpy().tolist() == q.quantize_blockwise(values, levels, len(values)).codes.tolist()


@given(values=weights, bits=st.integers(1, 8))
def test_levels_of_ones_own(values, bits):
    """With any levels the chosen one is the nearest, or one of two that are equally near up to the width of a point."""
    levels = (q.midpoint_normal_levels(bits) / q.midpoint_normal_levels(bits)[-1]).astype(np.float32)
    blocks = q.quantize_blockwise(values, levels, 64)
    scaled = values / np.repeat(np.maximum(blocks.absmax, 1e-30), 64)[: values.size]
    far = np.abs(scaled - levels[blocks.codes])[values != 0]
    nearest = np.abs(scaled[:, None] - levels).min(axis=1)[values != 0]

    assert (far <= nearest + 2 / 65535).all()


# Double quantisation, packing, bytes


@pytest.mark.parametrize("size", [1, 255, 256, 257, 5000])
def test_the_offset_is_the_mean(size):
    """It is PyTorch's mean, within what adding that many numbers in float32 can lose."""
    absmax = np.abs(np.random.default_rng(size).normal(size=size)).astype(np.float32)
    offset = q.quantize_statistics(absmax).offset

    assert offset == pytest.approx(torch.from_numpy(absmax).mean().item(), rel=(size + 1) * 2**-24)
    assert offset == np.float32(np.mean(absmax.astype(np.float64)))


@settings(max_examples=40, deadline=None)
@given(values=weights)
def test_statistics_come_back_near(values):
    """Doubly quantised statistics are within half the widest gap of the map, 0.0071 of the largest deviation, of the plain ones."""
    absmax = q.quantize_4bit(values).absmax
    statistics = q.quantize_statistics(absmax)
    widest = np.diff(q.dynamic_map()).max() / 2 + 2 / 65535
    deviation = np.abs(absmax - statistics.offset).max()

    assert np.abs(q.dequantize_statistics(statistics) - absmax).max() <= widest * deviation + 1e-6 * np.abs(absmax).max()


@given(codes=st.lists(st.integers(0, 15), min_size=1, max_size=99))
def test_packing_is_undone_by_unpacking(codes):
    """The first code of a byte is its high half; an odd one is followed by zero."""
    packed = q.pack_4bit(codes)

    assert packed.tolist() == [16 * first + second for first, second in zip(codes[::2], [*codes[1::2], 0], strict=False)]
    assert q.unpack_4bit(packed, len(codes)).tolist() == codes


@pytest.mark.parametrize("numel", [1, 63, 64, 65, 16384, 16385, 100_001])
@pytest.mark.parametrize("double_quant", [False, True])
def test_bytes_are_those_of_the_formula(numel, double_quant):
    """Tensor by tensor, by name, the arrays have the bytes that the planner counts."""
    tensor = q.quantize_4bit(np.linspace(-1, 1, numel, dtype=np.float32), double_quant=double_quant)
    counted = {part.name: part.nbytes for part in four_bit_weight(numel, double_quant=double_quant)}

    assert {name: array.nbytes for name, array in tensor.tensors.items()} == counted
    assert tensor.nbytes == sum(counted.values())


def test_qlora_bits_per_weight():
    """4.127 and 4.5 bits, derived, and equal to the bytes of a weight less its tables."""
    numel = 64 * 256 * 3
    tensor = q.quantize_4bit(np.linspace(-1, 1, numel, dtype=np.float32), double_quant=True)
    plain = q.quantize_4bit(np.linspace(-1, 1, numel, dtype=np.float32))

    assert q.bits_per_weight(double_quant=True) == 4 + 8 / 64 + 32 / (64 * 256) == 4.126953125
    assert 8 * (tensor.nbytes - CODE_BYTES - NESTED_CODE_BYTES - SCALAR_BYTES) == numel * q.bits_per_weight(double_quant=True)
    assert 8 * (plain.nbytes - CODE_BYTES) == numel * q.bits_per_weight(double_quant=False) == numel * 4.5


@settings(max_examples=60, deadline=None)
@given(values=arrays_of.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**127), 2.0**127, width=32)))
def test_bfloat16_is_rounded_as_torch_does(values):
    """To nearest, ties to even, from the smallest number to the largest."""
    assert bits(torch.from_numpy(values).to(torch.bfloat16).float().numpy()) == bits(q.round_to_bfloat16(values))


def test_only_numpy_is_loaded():
    """The module loads neither torch, nor bitsandbytes, nor scipy."""
    code = "import sys, json; import planner.quantization; print(json.dumps(sorted({'torch', 'bitsandbytes', 'scipy'} & set(sys.modules))))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert json.loads(loaded) == []


# What is refused

ONES = np.ones(100, np.float32)
BLOCKS = q.quantize_blockwise(ONES, block_elements=64)
TENSOR = q.quantize_4bit(ONES)


@pytest.mark.parametrize("quantize", [q.quantize_blockwise, q.quantize_4bit, q.quantize_statistics, lambda x: q.linear_grid(x, 4)])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1, np.inf], np.float32), "value 1 of 2 is inf"),
        (np.array([[1, 2], [-np.inf, 3]], np.float16), "value 2 of 4 is -inf"),
        (np.array([np.nan], np.float32), "value 0 of 1 is nan"),
        (np.array([], np.float32), "there are no values"),
        (np.array(["a"]), "type <U1"),
        (np.array([1j]), "type complex128"),
        (np.array([True]), "type bool"),
    ],
)
def test_what_is_no_finite_number_is_refused(quantize, values, message):
    """Infinities, NaN, nothing at all and other types are named, and there is a way out."""
    with pytest.raises(InvalidArrayError, match=message.replace("<", r"\<")) as caught:
        quantize(values)

    assert caught.value.hint


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: q.quantize_4bit(np.ones(4)), "type float64"),
        (lambda: q.quantize_blockwise(np.ones(4, np.int8)), "type int8"),
        (lambda: q.quantize_4bit(ONES, "int4"), "kind is 'int4'"),
        (lambda: q.quantize_4bit(ONES, block_elements=0), "block_elements is 0"),
        (lambda: q.quantize_blockwise(ONES, block_elements=-64), "block_elements is -64"),
        (lambda: q.quantize_4bit(ONES, block_elements=64.0), r"block_elements is 64\.0"),
        (lambda: q.quantize_4bit(ONES, offset=0.1), "offset is 0.1 without double_quant"),
        (lambda: q.quantize_blockwise(ONES, np.float32([0.5])), "there are 1 levels"),
        (lambda: q.quantize_blockwise(ONES, np.float32([1, -1])), "rising"),
        (lambda: q.quantize_blockwise(ONES, np.float32([-2, 1])), r"in \[-1, 1\]"),
        (lambda: q.quantize_blockwise(ONES, np.linspace(-1, 1, 257, dtype=np.float32)), "there are 257 levels"),
        (lambda: q.linear_grid([1.0], 1), "bits is 1"),
        (lambda: q.linear_grid([1.0], 17), "bits is 17"),
        (lambda: q.linear_grid([1.0], 4.5), r"bits is 4\.5"),
        (lambda: q.midpoint_normal_levels(4.0), r"bits is 4\.0"),
        (lambda: q.linear_grid([1.0], 4).dequantize([16]), "from 16 to 16"),
        (lambda: q.linear_grid([1.0], 4).dequantize([0.5]), "float64 from 0.5"),
        (lambda: q.midpoint_normal_levels(0), "bits is 0"),
        (lambda: q.offset_normal_levels(0.5), "offset is 0.5"),
        (lambda: q.offset_normal_levels(1.0), "offset is 1.0"),
        (lambda: q.bits_per_weight(double_quant=True, block_elements=0), "block_elements is 0"),
        (lambda: q.pack_4bit([16]), "integers from 0 to 15"),
        (lambda: q.pack_4bit([0.5]), "integers from 0 to 15"),
        (lambda: q.pack_4bit([]), "0 codes"),
        (lambda: q.unpack_4bit(np.zeros(3, np.uint8), 4), "4 codes of 4 bits are 2 bytes"),
        (lambda: q.unpack_4bit(np.zeros(2, np.int8), 4), "type int8"),
        (lambda: q.dequantize_4bit(TENSOR, DType.INT8), "must be fp32, fp16 or bf16"),
        (lambda: q.dequantize_blockwise(q.Blocks(BLOCKS.codes, BLOCKS.absmax[:1], BLOCKS.levels, 64)), r"absmax has the shape \(1,\)"),
        (lambda: q.dequantize_blockwise(q.Blocks(BLOCKS.codes, BLOCKS.absmax, BLOCKS.levels[:9], 64)), "there are 9 levels"),
        (lambda: q.dequantize_4bit(q.FourBitTensor(TENSOR.packed, TENSOR.absmax, "nf4", (300,), 64)), "300 values in blocks of 64"),
        (lambda: q.dequantize_4bit(q.FourBitTensor(TENSOR.packed, TENSOR.absmax, "nf4", (101,), 64)), "are 51 bytes"),
    ],
)
def test_bad_input_is_refused(call, message):
    """Each says what was given and what to do."""
    with pytest.raises(InvalidArrayError, match=message) as caught:
        call()

    assert caught.value.hint
