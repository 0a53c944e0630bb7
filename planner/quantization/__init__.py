"""
The numbers behind the bytes of a quantised weight, in NumPy: linear grids, NormalFloat and FP4 levels, blocks, double quantisation.

What bitsandbytes implements too is equal to it bit for bit, on a CPU and as of 0.50.2: codes, statistics, packed bytes, and what
comes back. Where bitsandbytes' own result depends on the machine, the docstring of the function says so.

>>> import numpy as np
>>> weights = np.linspace(-1, 1, 4096, dtype=np.float32)
>>> quantize_4bit(weights, "nf4", double_quant=True).packed.nbytes
2048
"""

from planner.quantization.blockwise import Blocks, dequantize_blockwise, quantize_blockwise
from planner.quantization.four_bit import FourBitTensor, bits_per_weight, dequantize_4bit, pack_4bit, quantize_4bit, unpack_4bit
from planner.quantization.levels import dynamic_map, fp4_levels, midpoint_normal_levels, nf4_levels, offset_normal_levels
from planner.quantization.linear import LinearGrid, linear_grid
from planner.quantization.nested import QuantizedStatistics, dequantize_statistics, quantize_statistics
from planner.quantization.values import round_to_bfloat16

__all__ = [
    "Blocks",
    "FourBitTensor",
    "LinearGrid",
    "QuantizedStatistics",
    "bits_per_weight",
    "dequantize_4bit",
    "dequantize_blockwise",
    "dequantize_statistics",
    "dynamic_map",
    "fp4_levels",
    "linear_grid",
    "midpoint_normal_levels",
    "nf4_levels",
    "offset_normal_levels",
    "pack_4bit",
    "quantize_4bit",
    "quantize_blockwise",
    "quantize_statistics",
    "round_to_bfloat16",
    "unpack_4bit",
]
