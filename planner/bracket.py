"""The last of many values whose measure stays within a limit, in a handful of measurements: for measures that never fall."""

from __future__ import annotations

from collections.abc import Callable

_GUESSES = 8
"""Guesses along a straight line before the search halves instead: what grows with the square takes five or six."""


def last_within(measure: Callable[[int], int], count: int, limit: int) -> int:
    """
    The largest index whose measure is within a limit.

    Guesses along the line through the last two measurements, then halves: memory grows with a batch almost by a straight line.

    Args:
        measure: Of an index; it must not fall from one index to the next.
        count: How many there are; 1 or more.
        limit: What may not be exceeded.

    Returns:
        The index; -1 where the first one exceeds the limit already.

    >>> last_within(lambda i: i * i, 1000, 50)
    7
    """
    low, high = 0, count  # within; beyond, or one past the end
    at_low = measure(0)
    if at_low > limit:
        return -1
    guesses, slope = 0, 0
    at = 1
    while high - low > 1:
        guesses += 1
        if guesses > _GUESSES:
            at = min(2 * low + 1, count - 1) if high == count else (low + high) // 2
        at = min(max(at, low + 1), high - 1)
        found = measure(at)
        slope = (found - at_low) // (at - low)
        if found <= limit:
            low, at_low = at, found
        else:
            high = at
        at = low + (limit - at_low) // slope if slope > 0 else count - 1 if high == count else (low + high) // 2
    return low
