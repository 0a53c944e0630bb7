"""Double quantisation: the statistics of 4-bit blocks, less their mean, in 8 bits and blocks of 256."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from planner.quantization.blockwise import Blocks, dequantize_blockwise, quantize_blockwise
from planner.quantization.values import Floats, block_values


@dataclass(frozen=True, eq=False, slots=True)
class QuantizedStatistics:
    """
    Statistics of blocks, themselves in blocks: `absmax ~ dequantised(blocks) + offset`.

    Attributes:
        blocks: absmax less its mean, in the dynamic map: codes [k], statistics [ceil(k/256)].
        offset: The mean that was taken off, one fp32.
    """

    blocks: Blocks
    offset: np.float32


def quantize_statistics(absmax: ArrayLike, *, offset: float | None = None) -> QuantizedStatistics:
    """
    Take the mean off, so that the signed map is used on both sides, and keep the rest in 8 bits.

    Args:
        absmax: Statistics of the blocks, float32 [k].
        offset: The mean as another machine computed it. Its last bits depend on the order of the sum (PyTorch's differs between
            CPUs, and on CUDA); without it the mean is exact, rounded once.

    Returns:
        Codes, statistics and offset; with bitsandbytes' own offset, equal to its codes and statistics to the last bit.

    Raises:
        InvalidArrayError: Statistics that are not finite float32 or float16.

    Source:
        bitsandbytes@0.50.2, functional.py, quantize_4bit with compress_statistics: `quantize_blockwise(_absmax - offset, blocksize=256)`.
    """
    flat = block_values(absmax)
    mean = np.float32(flat.mean(dtype=np.float64) if offset is None else offset)
    return QuantizedStatistics(quantize_blockwise(flat - mean), mean)


def dequantize_statistics(statistics: QuantizedStatistics) -> Floats:
    """
    The statistics as the weights will see them: dequantised in fp32, plus the offset.

    Returns:
        fp32 [k].

    Raises:
        InvalidArrayError: Codes and statistics that do not belong together.

    Source:
        bitsandbytes@0.50.2, functional.py, dequantize_4bit: `absmax = dequantize_blockwise(...); absmax += quant_state.offset`.
    """
    restored: Floats = dequantize_blockwise(statistics.blocks) + statistics.offset
    return restored
