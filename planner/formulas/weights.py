"""Weights at rest, what quantising them takes while they load, and what a product takes to read them back."""

from __future__ import annotations

from planner.dtypes import DType
from planner.formulas.blocks import TensorBytes, Tensors
from planner.units import ceil_div

# bitsandbytes@0.50.2, functional.py: quantize_4bit turns blocksize=None into 64, which is what transformers passes; the
# statistics are quantised with blocksize=256.
BLOCK_ELEMENTS = 64
NESTED_BLOCK_ELEMENTS = 256
CODE_BYTES = 16 * DType.FP32.num_bytes
NESTED_CODE_BYTES = 256 * DType.FP32.num_bytes
SCALAR_BYTES = DType.FP32.num_bytes

DYNAMIC_MAP = TensorBytes("functional.name2qmap", NESTED_CODE_BYTES)
"""
The 8-bit map that the first doubly quantised weight puts on its device, once a process; every weight's own table is a copy of it.

Source:
    bitsandbytes@0.50.2, functional.py, quantize_blockwise: `name2qmap["dynamic"] = create_dynamic_map().to(A.device)`.
"""


def dense_weight(numel: int, dtype: DType) -> Tensors:
    """One weight as it is: [numel] elements of a type."""
    return (TensorBytes("weight", numel * dtype.num_bytes),)


def four_bit_weight(numel: int, *, double_quant: bool) -> Tensors:
    """
    One weight in NF4 or FP4, with its statistics: both take the same bytes.

    Args:
        numel: Elements of the weight, n; an integer or an integer array. Odd counts take half a byte more.
        double_quant: Whether the statistics are quantised too (`bnb_4bit_use_double_quant`).

    Returns:
        The packed weight [ceil(n/2)] uint8; without double quantisation, absmax [ceil(n/64)] fp32 and the code table [16] fp32;
        with it, absmax [ceil(n/64)] uint8, its own absmax [ceil(n/64/256)] fp32 and table [256] fp32, the code table and the
        offset, fp32.

    Source:
        bitsandbytes@0.50.2, functional.py, quantize_4bit and quantize_blockwise; every weight has tables of its own
        (`get_4bit_type` builds one, `code.to(A.device, copy=True)`).
    """
    blocks = ceil_div(numel, BLOCK_ELEMENTS)
    packed = TensorBytes("weight", ceil_div(numel, 2))
    code = TensorBytes("quant_state.code", CODE_BYTES)
    if not double_quant:
        return packed, TensorBytes("quant_state.absmax", blocks * DType.FP32.num_bytes), code
    nested_blocks = ceil_div(blocks, NESTED_BLOCK_ELEMENTS)
    return (
        packed,
        TensorBytes("quant_state.absmax", blocks),
        code,
        TensorBytes("quant_state.offset", SCALAR_BYTES),
        TensorBytes("quant_state.state2.absmax", nested_blocks * DType.FP32.num_bytes),
        TensorBytes("quant_state.state2.code", NESTED_CODE_BYTES),
    )


def int8_weight(out_features: int, in_features: int) -> Tensors:
    """
    One LLM.int8 weight [out, in]: its values in int8 and a scale for each row, fp32.

    `state.CB` becomes an alias of the weight in the first forward, so it counts once.

    Source:
        bitsandbytes@0.50.2, nn/modules.py, Int8Params._quantize and Linear8bitLt.init_8bit_state.
    """
    return TensorBytes("weight", out_features * in_features), TensorBytes("weight.SCB", out_features * DType.FP32.num_bytes)


def four_bit_loading(numel: int, load_dtype: DType, *, double_quant: bool, transposed: bool = False) -> Tensors:
    """
    What lives beside the finished weight at the worst moment of quantising it on the card; all of it is gone afterwards.

    The weight arrives on the card in the load dtype, and the loader holds it until the quantised one is returned. With double
    quantisation the worst moment is inside the quantisation of the statistics: fp32 absmax and `absmax - offset` (out of place)
    are alive. Without it, it is the scaling of the code table by its largest value. A weight that is turned around first
    (transformers' Conv1D) is copied to be contiguous, and the copy lives as long.

    Args:
        numel: Elements of the weight.
        load_dtype: The type it is loaded in, before quantisation.
        double_quant: Whether the statistics are quantised too.
        transposed: Whether the module is a `Conv1D`.

    Source:
        transformers@5.23.0, integrations/bitsandbytes.py, Bnb4bitQuantize.convert; bitsandbytes@0.50.2, nn/modules.py,
        Params4bit._quantize, and functional.py, quantize_4bit.
    """
    dense = numel * load_dtype.num_bytes
    alive = [TensorBytes("source", dense)]
    if transposed:
        alive.append(TensorBytes("contiguous source", dense))
    if double_quant:
        statistics = ceil_div(numel, BLOCK_ELEMENTS) * DType.FP32.num_bytes
        alive += [TensorBytes("absmax", statistics), TensorBytes("absmax - offset", statistics)]
    else:
        alive += [TensorBytes("absolute code", CODE_BYTES), TensorBytes("largest code", SCALAR_BYTES)]
    return tuple(alive)


def int8_loading(numel: int, load_dtype: DType) -> Tensors:
    """
    What lives beside the finished weight at the worst moment of quantising it to int8; all of it is gone afterwards.

    The weight that the loader put on the card is copied to the CPU while the loader still holds it, and comes back in fp16.

    Source:
        transformers@5.23.0, integrations/bitsandbytes.py, Bnb8bitQuantize.convert; bitsandbytes@0.50.2, nn/modules.py,
        Int8Params._quantize.
    """
    return (
        TensorBytes("source", numel * load_dtype.num_bytes),
        TensorBytes("fp16 source", numel * DType.FP16.num_bytes),
    )
