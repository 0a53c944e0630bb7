"""Orders of reading, against a clock that ticks through the same threads one unit at a time, and against real threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from planner.engines.reading import IN_TURN, NEVER, WORKERS, Deed, reading_order

SIZES = (5, 1, 8, 8, 2, 1, 8, 3, 3, 7, 1, 6)
QUANTISED = tuple(size > 1 for size in SIZES)


class Hand(NamedTuple):
    """A thread at a tensor, and when it is through."""

    tensor: int
    until: int


def ticked(pace: int) -> list[tuple[Deed, int]]:
    """The same by looking at every thread at every hundredth of a unit."""
    told: list[tuple[Deed, int]] = []
    idle, busy, read = list(range(len(SIZES))), [], set()
    turn, main = 0, None
    for now in range(100 * sum(SIZES) * (1 + pace // 100) + 1):
        read |= {hand.tensor for hand in busy if hand.until <= now}
        busy = [hand for hand in busy if hand.until > now]
        while idle and len(busy) < WORKERS:
            tensor = idle.pop(0)
            told.append((Deed.READ, tensor))
            busy.append(Hand(tensor, now + 100 * SIZES[tensor]))
        while turn < len(SIZES):
            if main is not None and main.until > now:
                break
            if main is not None:
                told.append((Deed.DROP, turn))
                main, turn = None, turn + 1
            elif turn not in read:
                break
            elif QUANTISED[turn]:
                told.append((Deed.QUANTISE, turn))
                main = Hand(turn, now + pace * SIZES[turn])
            else:
                turn += 1
    return told


@pytest.mark.parametrize("pace", [0, 25, 50, 100, 400])
def test_threads_go_as_a_clock_would_have_them(pace):
    """Deed by deed, for a main thread that never lets anybody wait and for slower ones."""
    assert ticked(pace) == reading_order(SIZES, QUANTISED, pace)


def test_in_turn_nothing_waits():
    """One tensor after the other, each dropped before the next is read."""
    order = reading_order(SIZES, QUANTISED, IN_TURN)

    assert [i for deed, i in order if deed is Deed.READ] == list(range(len(SIZES)))
    assert order[:4] == [(Deed.READ, 0), (Deed.QUANTISE, 0), (Deed.DROP, 0), (Deed.READ, 1)]


def test_a_main_thread_that_sleeps_finds_everything_read():
    """All is on the card before the first tensor is let go of."""
    order = reading_order(SIZES, QUANTISED, NEVER)
    drop = order.index((Deed.DROP, 0))

    assert sum(deed is Deed.READ for deed, _ in order[:drop]) == len(SIZES)


def test_real_threads_read_in_that_order_too():
    """A pool that is given everything at once, as the loader gives it, takes tensors in order and as many as it has threads."""
    begun: list[int] = []
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        for future in [pool.submit(begun.append, i) for i in range(len(SIZES))]:
            future.result()
    order = [i for deed, i in reading_order(SIZES, QUANTISED, 0) if deed is Deed.READ]

    assert sorted(begun) == order
    assert [deed for deed, _ in reading_order(SIZES, QUANTISED, 0)[: WORKERS + 1]].count(Deed.READ) >= WORKERS
