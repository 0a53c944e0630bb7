"""Bytes as text, and the integer divisions that memory needs. Nothing here uses floating point to count."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Whole = TypeVar("Whole", int, npt.NDArray[np.int64])

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def ceil_div(a: Whole, b: int) -> Whole:
    """a / b rounded up. Works for integers and for integer arrays."""
    return -(-a // b)


def round_up(a: Whole, b: int) -> Whole:
    """The smallest multiple of b that is at least a. Works for integers and for integer arrays."""
    return -(-a // b) * b


def next_power_of_two(a: int) -> int:
    """
    The smallest power of two that is at least a, for a from 1 to 2^40. Works for integers and for integer arrays.

    >>> [next_power_of_two(n) for n in (1, 2, 3, 512, 513)]
    [1, 2, 4, 512, 1024]
    """
    return 1 + sum((a > 1 << k) << k for k in range(40))


def gib(nbytes: int, digits: int = 2) -> str:
    """
    Bytes as GiB text.

    >>> gib(1 << 30)
    '1.00 GiB'
    """
    return f"{nbytes / GIB:.{digits}f} GiB"


def human(nbytes: int) -> str:
    """
    Bytes in the unit that reads best.

    >>> human(512), human(3 << 20), human(5 << 30)
    ('512 B', '3.0 MiB', '5.00 GiB')
    """
    size = abs(nbytes)
    if size >= GIB // 10:
        return gib(nbytes)
    if size >= MIB // 10:
        return f"{nbytes / MIB:.1f} MiB"
    if size >= KIB:
        return f"{nbytes / KIB:.1f} KiB"
    return f"{nbytes} B"
