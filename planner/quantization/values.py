"""What may be quantised, how blocks are scaled, and the types that come back; NumPy has no bfloat16, so float32 carries it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.dtypes import DType
from planner.errors import InvalidArrayError

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

_LARGEST_BLOCK = 2**31


def check_whole(name: str, value: int, at_least: int, at_most: int, *, hint: str) -> None:
    """
    Refuse a count that is no whole number, or none that makes sense.

    Raises:
        InvalidArrayError: `value` is not an integer from `at_least` to `at_most`.
    """
    if not isinstance(value, int | np.integer) or not at_least <= value <= at_most:
        raise InvalidArrayError(f"{name} is {value!r}; it must be a whole number from {at_least:,} to {at_most:,}", hint=hint)


def check_block_elements(block_elements: int) -> None:
    """
    Refuse sizes that no block has.

    Raises:
        InvalidArrayError: Not a whole number above zero.
    """
    check_whole("block_elements", block_elements, 1, _LARGEST_BLOCK, hint="64 for 4 bits, 256 for 8, as bitsandbytes")


def finite(values: ArrayLike) -> NDArray[Any]:
    """
    The values as an array of real, finite numbers.

    Raises:
        InvalidArrayError: There are none, or they are not numbers, or one of them is infinite or NaN.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise InvalidArrayError(f"the values are of type {array.dtype}; they must be real numbers", hint="convert them to float32")
    if array.size == 0:
        raise InvalidArrayError("there are no values; at least one is needed to find a scale", hint="leave empty tensors as they are")
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InvalidArrayError(
            f"value {where} of {array.size} is {array.reshape(-1)[where]}; a scale exists for finite values alone",
            hint="find out where it comes from; np.nan_to_num(values) makes it finite",
        )
    return array


def block_values(values: ArrayLike) -> Floats:
    """
    The values as one row of float32, which is what bitsandbytes computes in; widening float16 and bfloat16 loses nothing.

    Raises:
        InvalidArrayError: As `finite`; or they are neither float32 nor float16.

    Source:
        bitsandbytes@0.50.2, functional.py: "only supports 16/32-bit floats".
    """
    array = finite(values)
    if array.dtype.name not in ("float32", "float16"):
        raise InvalidArrayError(
            f"the values are of type {array.dtype}; blocks are made of float32 or float16, as in bitsandbytes",
            hint="values.astype(np.float32), also for bfloat16",
        )
    return array.reshape(-1).astype(np.float32)


def per_block(statistics: Floats, block_elements: int, numel: int) -> Floats:
    """Each block's number once for each of its elements: [ceil(n/B)] -> [n]; the last block may be short."""
    return np.repeat(statistics, block_elements)[:numel]


def block_absmax(flat: Floats, block_elements: int) -> Floats:
    """The largest absolute value of each block: [n] -> [ceil(n/B)]."""
    return np.maximum.reduceat(np.abs(flat), np.arange(0, flat.size, block_elements))


def round_to_bfloat16(values: ArrayLike) -> Floats:
    """
    Float32 rounded to bfloat16's 8 bits of precision, to nearest and ties to even; float32 still, since NumPy has no bfloat16.

    Raises:
        InvalidArrayError: As for blocks: finite float32 or float16.

    Source:
        bitsandbytes@0.50.2, csrc/cpu_ops.h, float_to_bf16.
    """
    return _bfloat16(block_values(values)).reshape(np.shape(values))


def cast(values: Floats, dtype: DType) -> NDArray[Any]:
    """
    What comes back, in the type that was asked for: float32, float16, or bfloat16's values in float32.

    Raises:
        InvalidArrayError: Another type.
    """
    if dtype is DType.FP32:
        return values
    if dtype is DType.BF16:
        return _bfloat16(values)
    if dtype is DType.FP16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    raise InvalidArrayError(f"dtype is {dtype!r}; it must be fp32, fp16 or bf16", hint="dtype=DType.FP32, then cast as you like")


def _bfloat16(values: Floats) -> Floats:
    bits = values.view(np.uint32)
    to_even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded: NDArray[np.uint32] = (bits + np.uint32(0x7FFF) + to_even) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)
