"""The levels that codes stand for: NormalFloat as the textbook has it and as bitsandbytes ships it, FP4, and the dynamic 8-bit map."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from planner.errors import InvalidArrayError
from planner.quantization.values import Floats, check_whole

_SHIPPED_OFFSET = 0.9677083
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_FP4_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, 0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0)
_DECADES = 7


def midpoint_normal_levels(bits: int = 4) -> NDArray[np.float64]:
    """
    NormalFloat as the textbook has it: the normal's quantiles in the middle, by probability, of 2^b equally likely bins.

    `Phi^-1((2i + 1) / 2^(b+1))` for i from 0 to 2^b - 1, in standard deviations: symmetric, without a zero; for 4 bits from
    -1.863 to 1.863, the innermost two at +-0.078. Divided by the last, they are levels for blocks scaled by their absmax.

    The QLoRA paper's equation 4 means the same but prints averages of neighbouring quantiles, `(Q(i / (2^b + 1)) + Q((i + 1) /
    (2^b + 1))) / 2`, whose outermost are infinite. Neither is what runs: see `nf4_levels`.

    Args:
        bits: b, from 1 to 16.

    Returns:
        [2^b] levels, rising.

    Raises:
        InvalidArrayError: A number of bits out of that range.

    Source:
        arXiv 2305.14314, section 3 and equation 4, for the idea.
    """
    check_whole("bits", bits, 1, 16, hint="4 is usual")
    quantile = NormalDist().inv_cdf
    upper = [quantile((2 * i + 1) / 2 ** (bits + 1)) for i in range(2 ** (bits - 1), 2**bits)]
    return np.array([-level for level in reversed(upper)] + upper)


def offset_normal_levels(offset: float = _SHIPPED_OFFSET) -> Floats:
    """
    NormalFloat as bitsandbytes makes it: quantiles at equal steps of probability from `offset` to a half, each side on its own.

    Seven below zero, 1/7 of the way apart; an exact zero; eight above, 1/8 apart; all divided by the largest. The default offset is
    `1 - (1/30 + 1/32) / 2`, cut to seven digits: the mean of the outermost midpoints of 15 and of 16 equally likely bins.

    Args:
        offset: Probability below the outermost level, between a half and one.

    Returns:
        [16] levels from -1 to 1, rising. With the default offset they are `nf4_levels()` to the last bit (tests/test_quantization.py).

    Raises:
        InvalidArrayError: An offset that is no such probability.

    Source:
        bitsandbytes@0.50.2, functional.py, create_normal_map, without the zeros that fill its table up to 256.
    """
    if not 0.5 < offset < 1:
        raise InvalidArrayError(f"offset is {offset}; it must lie between 0.5 and 1", hint=f"bitsandbytes uses {_SHIPPED_OFFSET}")
    quantile = NormalDist().inv_cdf
    positive, negative = ([quantile(float(probability)) for probability in _linspace(offset, 0.5, points)[:-1]] for points in (9, 8))
    levels = np.array([-level for level in negative] + [0.0] + positive[::-1], dtype=np.float32)
    levels /= levels.max()
    return levels


def nf4_levels() -> Floats:
    """
    NF4 as bitsandbytes ships it and as the QLoRA paper prints it: the table in its kernels.

    How it differs from `midpoint_normal_levels(4)`, and why:
     - it holds zero, so that padding and pruned weights stay exact. That leaves 15 codes for two sides: 8 above zero, 7 below;
     - it is on [-1, 1] and holds both ends: a block is divided by its absmax, so the largest of its values is at an end;
     - the probability of the outermost level is a mean of two rules (`offset_normal_levels`), since the sides have different numbers
       of levels: the bins are not equally likely.

    Returns:
        [16] levels by code, rising.

    Source:
        arXiv 2305.14314, appendix E; bitsandbytes@0.50.2, functional.py, get_4bit_type, and csrc/kernels.cu, nf4_dequantization_lut.
    """
    return np.array(_NF4, dtype=np.float32)


def fp4_levels() -> Floats:
    """
    FP4 as bitsandbytes ships it: a sign, two bits of exponent, one of mantissa; by code, so not rising.

    Twelfths: 0, 1/16, 8, 12, 4, 6, 2, 3, then the same below zero. Two codes, 0 and 8, are zero.

    Returns:
        [16] levels by code.

    Source:
        bitsandbytes@0.50.2, functional.py, get_4bit_type. Its subnormal is 1/192 of the largest; create_fp8_map, named there as the
        rule, makes it 1/48, and the OCP's FP4 (E2M1) 1/12. All other levels of the three are the same.
    """
    levels = np.array(_FP4_TWELFTHS, dtype=np.float32)
    levels /= np.float32(12)
    return levels


def dynamic_map() -> Floats:
    """
    bitsandbytes' signed dynamic map of 8 bits: seven decades, of which the larger have more levels.

    Decade i, from 0 to 6, covers 10^(i-7) to 10^(i-6) with 2^i levels on each side: the middles of 2^i equal parts of [0.1, 1],
    times 10^(i-6). With zero and one that makes 256; -1 is none of them, the smallest is -0.993.

    Returns:
        [256] levels, rising. bitsandbytes makes them with torch.linspace, whose last bit depends on the CPU: these are the ones of
        CPUs that fuse multiplication and addition (on x86, AVX2 and later), elsewhere some are one unit in the last place away.

    Source:
        bitsandbytes@0.50.2, functional.py, create_dynamic_map; arXiv 1511.04561.
    """
    levels = [np.array([0, 1], dtype=np.float32)]
    for decade in range(_DECADES):
        edges = _linspace(0.1, 1.0, 2**decade + 1)
        middles = np.float32(10.0 ** (decade - _DECADES + 1)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        levels += [middles, -middles]
    rising: Floats = np.sort(np.concatenate(levels))
    return rising


def _linspace(begin: float, end: float, points: int) -> Floats:
    """
    torch.linspace in float32: from both ends towards the middle, each product and sum rounded once, as a fused one.

    Source:
        torch@2.13.0, aten/src/ATen/native/cpu/RangeFactoriesKernel.cpp, linspace_kernel. Float64 holds these products and sums exactly.
    """
    first, last = np.float32(begin), np.float32(end)
    step = float((last - first) / np.float32(points - 1))
    index = np.arange(points)
    exact = np.where(index < points // 2, float(first) + step * index, float(last) - step * (points - 1 - index))
    return np.array(exact, dtype=np.float32)
