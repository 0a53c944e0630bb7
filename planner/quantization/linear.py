"""Linear (affine) quantisation to b bits: one step for all values, with or without a zero-point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.errors import InvalidArrayError
from planner.quantization.values import check_whole, finite


@dataclass(frozen=True, slots=True)
class LinearGrid:
    """
    Equal steps: `x ~ scale * (code - zero_point)` for whole codes from `lowest` to `highest`.

    Attributes:
        scale: One step, s, in the unit of the values.
        zero_point: The code of zero, z; zero itself comes back exactly.
        lowest: The smallest code.
        highest: The largest code.
    """

    scale: float
    zero_point: int
    lowest: int
    highest: int

    @property
    def error_bound(self) -> float:
        """The largest error of a value inside the range that the grid was made for: s/2. Values beyond it are clamped."""
        return self.scale / 2

    def quantize(self, values: ArrayLike) -> NDArray[np.int32]:
        """
        `round(x / s) + z`, clamped to the codes; a half is rounded to even.

        Args:
            values: Real numbers, any shape.

        Returns:
            Codes in that shape.

        Raises:
            InvalidArrayError: No values, or not all of them finite numbers.
        """
        steps = np.rint(finite(values).astype(np.float64) / self.scale)
        codes: NDArray[np.int32] = np.clip(steps + self.zero_point, self.lowest, self.highest).astype(np.int32)
        return codes

    def dequantize(self, codes: ArrayLike) -> NDArray[np.float64]:
        """
        `s * (code - z)`.

        Args:
            codes: Integers from `lowest` to `highest`, any shape.

        Raises:
            InvalidArrayError: Not integers, or beyond the grid.
        """
        array = finite(codes)
        if array.dtype.kind == "f" or array.min() < self.lowest or array.max() > self.highest:
            raise InvalidArrayError(
                f"the codes are {array.dtype} from {array.min()} to {array.max()}; "
                f"this grid has integers from {self.lowest} to {self.highest}",
                hint="pass what the same grid's quantize returned",
            )
        return self.scale * (array.astype(np.float64) - self.zero_point)


def linear_grid(values: ArrayLike, bits: int, *, symmetric: bool = False) -> LinearGrid:
    """
    The finest grid of 2^b codes that covers the values.

    Asymmetric: `s = (x_max - x_min) / (2^b - 1)`, `z = round(-x_min / s)`, codes 0 to 2^b - 1. The range is widened to hold zero,
    as PyTorch's observers do, so z is a code too. With z rounded, the grid is up to s/2 beside the range, and the bound of s/2
    still holds at both ends: clamping takes away no more than rounding would.

    Symmetric (absmax): `s = max|x| / (2^(b-1) - 1)`, `z = 0`, codes -(2^(b-1) - 1) to 2^(b-1) - 1: one code is given up.

    Args:
        values: Real numbers, any shape; the arithmetic is in float64.
        bits: b, from 2 to 16.
        symmetric: Whether zero sits in the middle.

    Returns:
        The grid. Its step is never below the smallest normal number, so zeros alone have a grid as well.

    Raises:
        InvalidArrayError: No values, not all of them finite numbers, or a number of bits that no grid has.

    Source:
        torch@2.13.0, ao/quantization/observer.py, UniformQuantizationObserverBase._calculate_qparams, for the range that holds zero.
    """
    check_whole("bits", bits, 2, 16, hint="4 and 8 are usual")
    array = finite(values).astype(np.float64)
    smallest = float(np.finfo(np.float64).tiny)
    if symmetric:
        highest = 2 ** (bits - 1) - 1
        return LinearGrid(max(float(np.abs(array).max()) / highest, smallest), 0, -highest, highest)
    highest = 2**bits - 1
    low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
    scale = max(high / highest - low / highest, smallest)
    return LinearGrid(scale, round(-low / scale), 0, highest)
