"""Where a model's layers repeat: which of them have to be run, and what the others are called."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

from planner.value import NamedTuple


class Repetition(NamedTuple):
    """
    A stretch of layers that repeats: `count` times `period` layers, from `start` on; `count` is 0 where nothing is worth leaving out.
    """

    start: int
    period: int
    count: int  # type: ignore[assignment]  # a tuple's own method of that name is of no use here


def repetition(keys: Sequence[Hashable]) -> Repetition:
    """
    The stretch of layers of which running the first, the second and the last instance saves the most.

    Args:
        keys: Of each layer, what it does: layers with equal keys do the same.

    >>> repetition("aaaaaa"), repetition("cabababababd"), repetition("aaa")
    (Repetition(start=0, period=1, count=6), Repetition(start=1, period=2, count=5), Repetition(start=0, period=1, count=0))
    """
    best, saved = Repetition(0, 1, 0), 0
    for period in range(1, len(keys) // 4 + 1):
        start = 0
        for i in range(period, len(keys) + 1):
            if i < len(keys) and keys[i] == keys[i - period]:
                continue
            count = (i - start) // period
            if (count - 3) * period > saved:
                best, saved = Repetition(start, period, count), (count - 3) * period
            start = i - period + 1
    return best


_NUMBER = re.compile(r"\d+")


class Numbered(NamedTuple):
    """A module's path around the number of its layer: what comes before and after, the number in the second instance, and its step."""

    before: str
    number: int = 0
    step: int = 0
    after: str = ""

    def of(self, instance: int) -> str:
        """The path in another instance; the second is 1."""
        return f"{self.before}{self.number + self.step * (instance - 1)}{self.after}" if self.step else self.before


def numbered(second: str, last: str, steps: int) -> Numbered:
    """
    The path of a module in every instance.

    Args:
        second: Its path in the second instance.
        last: Its path in the last: they differ in one number, or the second's is everybody's.
        steps: Instances from the second to the last.

    >>> numbered("layers.1.mlp", "layers.9.mlp", 8).of(4)
    'layers.4.mlp'
    """
    pairs = zip(_NUMBER.finditer(second), _NUMBER.finditer(last), strict=False)
    differing = [(a, int(b[0])) for a, b in pairs if a[0] != b[0]]
    if len(differing) != 1:
        return Numbered(second)
    match, number = differing[0]
    return Numbered(second[: match.start()], int(match[0]), (number - int(match[0])) // steps, second[match.end() :])
