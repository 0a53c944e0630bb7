"""Weights in 4 bits as bitsandbytes stores them: NF4 or FP4 codes, two a byte, with plain or doubly quantised statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.dtypes import DType
from planner.errors import InvalidArrayError
from planner.formulas.weights import BLOCK_ELEMENTS, NESTED_BLOCK_ELEMENTS
from planner.quantization.blockwise import check_statistics
from planner.quantization.levels import fp4_levels, nf4_levels
from planner.quantization.nested import QuantizedStatistics, dequantize_statistics, quantize_statistics
from planner.quantization.values import Codes, Floats, block_absmax, block_values, cast, check_block_elements, per_block
from planner.units import ceil_div

FourBitKind = Literal["nf4", "fp4"]
_SMALLEST_SCALE = np.float32(1e-38)


@dataclass(frozen=True, eq=False, slots=True)
class FourBitTensor:
    """
    One weight in 4 bits: `w[i] ~ levels[code[i]] * absmax[i // B]`, counted along the flattened weight.

    Attributes:
        packed: Two codes a byte, uint8 [ceil(n/2)].
        absmax: Statistics of the blocks: fp32 [ceil(n/B)], or those doubly quantised.
        kind: `nf4` or `fp4`.
        shape: Shape of the weight.
        block_elements: B.
    """

    packed: Codes
    absmax: Floats | QuantizedStatistics
    kind: FourBitKind
    shape: tuple[int, ...]
    block_elements: int

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """The arrays that bitsandbytes keeps for it, by its names; their bytes are `planner.formulas.weights.four_bit_weight`."""
        code = _levels(self.kind)
        if not isinstance(self.absmax, QuantizedStatistics):
            return {"weight": self.packed, "quant_state.absmax": self.absmax, "quant_state.code": code}
        blocks = self.absmax.blocks
        return {
            "weight": self.packed,
            "quant_state.absmax": blocks.codes,
            "quant_state.code": code,
            "quant_state.offset": np.asarray(self.absmax.offset),
            "quant_state.state2.absmax": blocks.absmax,
            "quant_state.state2.code": blocks.levels,
        }

    @property
    def nbytes(self) -> int:
        """Bytes of all of them, tables included, before an allocator rounds."""
        return sum(array.nbytes for array in self.tensors.values())


def bits_per_weight(
    *, double_quant: bool, block_elements: int = BLOCK_ELEMENTS, nested_block_elements: int = NESTED_BLOCK_ELEMENTS
) -> float:
    """
    Bits that one weight takes in a large tensor, tables left out.

    `4 + 32/B` with fp32 statistics; `4 + 8/B + 32/(B * N)` with 8-bit ones in blocks of N: 4.5 and 4.126953125 by default.

    Args:
        double_quant: Whether the statistics are quantised too.
        block_elements: B, weights a block.
        nested_block_elements: N, statistics a block.

    Raises:
        InvalidArrayError: A block size that is no whole number above zero.

    Source:
        arXiv 2305.14314, section 3, which counts the statistics alone: 0.5 and 0.127 bits.
    """
    check_block_elements(block_elements)
    check_block_elements(nested_block_elements)
    if not double_quant:
        return 4 + 32 / block_elements
    return 4 + 8 / block_elements + 32 / (block_elements * nested_block_elements)


def pack_4bit(codes: ArrayLike) -> Codes:
    """
    Two codes a byte, the first in the high half; an odd one out is followed by 0.

    Args:
        codes: Integers from 0 to 15, any shape.

    Returns:
        uint8 [ceil(n/2)]. bitsandbytes' is the same as a column, [ceil(n/2), 1].

    Raises:
        InvalidArrayError: No codes, or some that are not 4 bits.

    Source:
        bitsandbytes@0.50.2, backends/default/ops.py, quantize_4bit: `(q8[::2] << 4) | q8[1::2]`.
    """
    array = np.asarray(codes)
    if array.dtype.kind not in "iu" or array.size == 0 or array.min() < 0 or array.max() > 15:
        raise InvalidArrayError(
            f"{array.size} codes of type {array.dtype}; they must be integers from 0 to 15", hint="pass codes, not values"
        )
    flat = np.append(array.reshape(-1), np.zeros(array.size % 2, array.dtype)).astype(np.uint8)
    packed: Codes = (flat[::2] << np.uint8(4)) | flat[1::2]
    return packed


def unpack_4bit(packed: Codes, numel: int) -> Codes:
    """
    The codes of packed bytes.

    Args:
        packed: uint8 [ceil(n/2)].
        numel: n.

    Returns:
        uint8 [n].

    Raises:
        InvalidArrayError: Not that many bytes.
    """
    array = np.asarray(packed)
    if array.dtype != np.uint8 or array.size != ceil_div(numel, 2) or numel < 1:
        raise InvalidArrayError(
            f"{array.size} elements of type {array.dtype}; {numel} codes of 4 bits are {ceil_div(numel, 2)} bytes of uint8",
            hint="pass the packed weight, and the number of elements that it had",
        )
    flat = array.reshape(-1)
    return np.stack([flat >> np.uint8(4), flat & np.uint8(15)], axis=1).reshape(-1)[:numel]


def quantize_4bit(
    values: ArrayLike,
    kind: FourBitKind = "nf4",
    *,
    block_elements: int = BLOCK_ELEMENTS,
    double_quant: bool = False,
    offset: float | None = None,
) -> FourBitTensor:
    """
    One weight in NF4 or FP4: blocks of 64 scaled by their absmax, the nearest level of each value, two codes a byte.

    A value in the middle of two levels takes the lower one. Whole blocks are multiplied by the inverse of their absmax; a short last
    block is divided by it, and its absmax is at least 1e-38; CUDA multiplies there too, which can change a code beside a middle. After
    an odd number of values comes the code of zero.

    Args:
        values: Finite float32 or float16, any shape; bfloat16 as float32.
        kind: `nf4` or `fp4`.
        block_elements: B; bitsandbytes takes powers of two from 32 to 4096.
        double_quant: Whether the statistics are quantised too (`bnb_4bit_use_double_quant`).
        offset: As in `quantize_statistics`; with `double_quant` alone.

    Returns:
        Packed codes and statistics, equal to bitsandbytes' to the last bit. Of FP4's two zeros, 0 and 8, the CPU stores 0 for what is
        rounded up to zero and 8 for what is rounded down to it; CUDA goes by the sign.

    Raises:
        InvalidArrayError: Values, a kind or a block size that are none of these.

    Source:
        bitsandbytes@0.50.2, backends/default/ops.py, quantize_4bit, which is the CPU's; functional.py, quantize_4bit.
    """
    check_block_elements(block_elements)
    levels = _levels(kind)
    if offset is not None and not double_quant:
        raise InvalidArrayError(
            f"offset is {offset} without double_quant; it is the mean of statistics that are quantised", hint="double_quant=True"
        )
    flat = block_values(values)
    absmax = block_absmax(flat, block_elements)
    whole = flat.size // block_elements * block_elements
    if whole < flat.size:
        absmax[-1] = max(absmax[-1], _SMALLEST_SCALE)
    inverse = np.float32(1) / np.maximum(absmax, _SMALLEST_SCALE)
    scaled = flat * per_block(inverse, block_elements, flat.size)
    scaled[whole:] = flat[whole:] / absmax[-1]
    order = np.argsort(levels, kind="stable").astype(np.uint8)
    rising = levels[order]
    middles = (rising[:-1] + rising[1:]) / np.float32(2)
    padded = np.append(scaled, np.zeros(flat.size % 2, np.float32))
    codes = order[np.searchsorted(middles, padded, side="left")]
    statistics = quantize_statistics(absmax, offset=offset) if double_quant else absmax
    return FourBitTensor(pack_4bit(codes), statistics, kind, np.shape(values), block_elements)


def dequantize_4bit(tensor: FourBitTensor, dtype: DType = DType.FP32) -> NDArray[Any]:
    """
    The weight as a product reads it: `levels[code] * absmax`, multiplied in fp32, then rounded to the type that is asked for.

    Args:
        tensor: What `quantize_4bit` returned.
        dtype: fp32, fp16 or bf16; bf16 comes as float32 that holds bfloat16's values.

    Returns:
        Values in the shape of the weight, equal to bitsandbytes' to the last bit, but for three things there: FP4's code 8 is -0.0 on
        CUDA and on CPUs without AVX-512; bfloat16's subnormals become zero on CPUs with AVX-512; and those CPUs read the statistics
        of other blocks where a matrix has rows that are a multiple of 16 long but end inside a block.

    Raises:
        InvalidArrayError: Another type; bytes and statistics that do not belong together.

    Source:
        bitsandbytes@0.50.2, csrc/cpu_ops.cpp, dequantizeBlockwise4bitCpu.
    """
    numel = math.prod(tensor.shape)
    absmax = dequantize_statistics(tensor.absmax) if isinstance(tensor.absmax, QuantizedStatistics) else tensor.absmax
    check_statistics(absmax, numel, tensor.block_elements)
    values = _levels(tensor.kind)[unpack_4bit(tensor.packed, numel)] * per_block(absmax, tensor.block_elements, numel)
    return cast(values, dtype).reshape(tensor.shape)


def _levels(kind: FourBitKind) -> Floats:
    if kind not in get_args(FourBitKind):
        raise InvalidArrayError(f"kind is {kind!r}; it must be one of {', '.join(get_args(FourBitKind))}", hint='kind="nf4"')
    return nf4_levels() if kind == "nf4" else fp4_levels()
