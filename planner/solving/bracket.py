"""The last of many values whose measure stays within a limit, in a handful of measurements: for measures that never fall."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, sqrt

_FIRST = (8, 16)
"""Where to look after the first value: with it they make a parabola."""
_GUESSES = 12
"""Guesses before the search halves instead."""


def last_within(measure: Callable[[int], int], count: int, limit: int) -> int:
    """
    The largest index whose measure is within a limit.

    Guesses along the parabola through three measurements, then halves: memory grows by a line or a parabola, with jumps.

    Args:
        measure: Of an index; it must not fall from one index to the next.
        count: How many there are; 1 or more.
        limit: What may not be exceeded.

    Returns:
        The index; -1 where the first one exceeds the limit already.

    >>> last_within(lambda i: i * i, 1000, 50)
    7
    """
    known = {0: measure(0)}
    if known[0] > limit:
        return -1
    low, high = 0, count  # within; beyond, or one past the end
    while high - low > 1:
        at = _FIRST[len(known) - 1] if len(known) <= len(_FIRST) else _guess(known, low, high, limit)
        if len(known) > _GUESSES:
            at = (low + high) // 2
        at = min(max(at, low + 1), high - 1)
        known[at] = measure(at)
        if known[at] <= limit:
            low = at
        else:
            high = at
    return low


def _guess(known: dict[int, int], low: int, high: int, limit: int) -> int:
    """Where the parabola through the three measurements nearest to the limit meets it; the middle where it does not."""
    x, y, z = sorted(sorted(known, key=lambda index: abs(known[index] - limit))[:3])
    slope = (known[y] - known[x]) / (y - x)
    bend = ((known[z] - known[y]) / (z - y) - slope) / (z - x)
    # known[x] + slope (i - x) + bend (i - x) (i - y) = limit, with j = i - x
    linear, missing = slope - bend * (y - x), limit - known[x]
    if linear <= 0 or linear * linear + 4 * bend * missing < 0:
        return high - 1 if high not in known else (low + high) // 2
    found = x + 2 * missing / (linear + sqrt(linear * linear + 4 * bend * missing))
    return int(found) if isfinite(found) and found < 1 << 62 else high - 1
