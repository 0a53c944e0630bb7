"""Block-wise quantisation by absmax to at most 8 bits: every block has its own scale, all blocks share one table of levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.dtypes import DType
from planner.errors import InvalidArrayError
from planner.formulas.weights import NESTED_BLOCK_ELEMENTS
from planner.quantization.levels import dynamic_map
from planner.quantization.values import Codes, Floats, block_absmax, block_values, cast, check_block_elements, per_block
from planner.units import ceil_div

_LARGEST_MAP = 256
_BINS = 65536


@dataclass(frozen=True, eq=False, slots=True)
class Blocks:
    """
    Values in blocks: `x[i] ~ levels[codes[i]] * absmax[i // B]`, counted along the flattened array.

    Attributes:
        codes: uint8, in the shape of the values.
        absmax: The largest absolute value of each block, fp32 [ceil(n/B)].
        levels: What each code stands for, fp32, rising, inside [-1, 1].
        block_elements: B.
    """

    codes: Codes
    absmax: Floats
    levels: Floats
    block_elements: int


def quantize_blockwise(values: ArrayLike, levels: Floats | None = None, block_elements: int = NESTED_BLOCK_ELEMENTS) -> Blocks:
    """
    Scale each block by its absmax to [-1, 1] and keep the code of the nearest level.

    "Nearest" is found as bitsandbytes does on a CPU: [-1, 1] is cut into 65,536 points, and a value takes the code of its nearest
    point. So within 1/65,535 of the middle of two levels the other one may be taken; CUDA compares with the middles themselves and
    then may differ by one code. All of a block of zeros has code 0, and an absmax of zero brings zeros back.

    Args:
        values: Finite float32 or float16, any shape; bfloat16 as float32.
        levels: 2 to 256 rising levels in [-1, 1]; `dynamic_map()` unless given.
        block_elements: B; the last block may be short.

    Returns:
        Codes and statistics; equal to bitsandbytes' to the last bit for maps of 256 levels.

    Raises:
        InvalidArrayError: Values, levels or a block size that are none of these.

    Source:
        bitsandbytes@0.50.2, csrc/cpu_ops.cpp, quantize_cpu_impl, build_quantize_lut and norm_to_lut_index; csrc/kernels.cu, dQuantize.
    """
    check_block_elements(block_elements)
    table = dynamic_map() if levels is None else _checked_levels(levels)
    flat = block_values(values)
    absmax = block_absmax(flat, block_elements)
    largest = per_block(absmax, block_elements, flat.size)
    # 1 / absmax overflows for the smallest subnormals: infinity times zero is then no number, which C casts to point 0.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scaled = np.clip(flat * (np.float32(1) / largest), np.float32(-1), np.float32(1))
    codes = _nearest_points(table)[_point(np.nan_to_num(scaled, nan=-1.0))]
    return Blocks(np.where(largest == 0, np.uint8(0), codes).reshape(np.shape(values)), absmax, table, block_elements)


def dequantize_blockwise(blocks: Blocks, dtype: DType = DType.FP32) -> NDArray[Any]:
    """
    `levels[code] * absmax`, multiplied in fp32, then rounded to the type that is asked for.

    Args:
        blocks: What `quantize_blockwise` returned.
        dtype: fp32, fp16 or bf16; bf16 comes as float32 that holds bfloat16's values.

    Returns:
        Values in the shape of the codes.

    Raises:
        InvalidArrayError: Another type; codes, statistics and levels that do not belong together.

    Source:
        bitsandbytes@0.50.2, csrc/cpu_ops.cpp, dequantizeBlockwise8bitCpu.
    """
    flat = blocks.codes.reshape(-1)
    check_statistics(blocks.absmax, flat.size, blocks.block_elements)
    if int(flat.max()) >= blocks.levels.size:
        raise InvalidArrayError(
            f"a code is {flat.max()}; there are {blocks.levels.size} levels", hint="pass the levels that were quantised with"
        )
    values = blocks.levels[flat] * per_block(blocks.absmax, blocks.block_elements, flat.size)
    return cast(values, dtype).reshape(blocks.codes.shape)


def check_statistics(absmax: NDArray[Any], numel: int, block_elements: int) -> None:
    """
    Refuse statistics of another number of blocks.

    Raises:
        InvalidArrayError: `absmax` has not one number for each block, or there are no values.
    """
    check_block_elements(block_elements)
    if numel == 0 or absmax.shape != (ceil_div(numel, block_elements),):
        raise InvalidArrayError(
            f"absmax has the shape {absmax.shape}; {numel} values in blocks of {block_elements} have ({ceil_div(numel, block_elements)},)",
            hint="pass the statistics that were made with these codes",
        )


def _checked_levels(levels: ArrayLike) -> Floats:
    table = block_values(levels)
    if not 2 <= table.size <= _LARGEST_MAP or np.any(np.diff(table) < 0) or np.abs(table).max() > 1:
        raise InvalidArrayError(
            f"there are {table.size} levels from {table[0]} to {table[-1]}; there must be 2 to {_LARGEST_MAP}, rising, in [-1, 1]",
            hint="sort them and divide by the largest absolute one",
        )
    return table


def _nearest_points(levels: Floats) -> Codes:
    """For each of the 65,536 points of [-1, 1], its level: how many middles lie below it, both in fp32 as C computes them."""
    middles = np.float32(0.5) * (levels[:-1] + levels[1:])
    points = np.float32(-1) + np.arange(0, 2 * _BINS, 2, dtype=np.float32) / np.float32(_BINS - 1)
    codes: Codes = np.searchsorted(middles, points, side="left").astype(np.uint8)
    return codes


def _point(scaled: Floats) -> NDArray[np.int32]:
    """The point of a value in [-1, 1], `(x + 1) / 2 * 65535 + 1/2` cut to a whole number."""
    half = (scaled + np.float32(1)) * np.float32(0.5)
    points: NDArray[np.int32] = (half * np.float32(_BINS - 1) + np.float32(0.5)).astype(np.int32)
    return points
