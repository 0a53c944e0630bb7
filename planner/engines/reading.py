"""
In which order a checkpoint's tensors are read onto the card and quantised: in turn, or by threads that run ahead of the one that quantises.

Source:
    transformers@5.3.0, core_model_loading.py, `GLOBAL_WORKERS`, spawn_materialize, convert_and_load_state_dict_in_model: four threads read,
    the main one waits for a tensor, quantises it and lets go of it; `.to(device, dtype)` takes a tensor's room before its bytes are there.
    transformers@5.4.0, the same: `has_on_the_fly_quantization`, no threads.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from enum import IntEnum

WORKERS = 4
"""Threads that read."""

IN_TURN = None
"""A pace: no threads, each tensor is read when it is quantised."""

NEVER = 1_000_000
"""A pace at which everything has been read long before it is quantised."""

Pace = int | None
"""
How long the main thread takes for a tensor, in percent of what a worker takes to read it, or `IN_TURN`. At 0 nobody waits for the main
thread; at 100 / `WORKERS` it keeps up with the workers just so.
"""


class Deed(IntEnum):
    """What happens to a tensor: it takes its room on the card; it is quantised; what was read of it is let go of."""

    READ = 0
    QUANTISE = 1
    DROP = 2


def reading_order(sizes: Sequence[int], is_quantised: Sequence[bool], pace: Pace = IN_TURN) -> list[tuple[Deed, int]]:
    """
    What happens to which tensor, in order.

    Args:
        sizes: Bytes of each tensor as it is read, in the checkpoint's order.
        is_quantised: Whether each one is; the others stay as they are read.
        pace: Of the main thread. Reading takes a time in proportion to the bytes; a worker that has read a tensor begins the next one
            before the main thread wakes up.
    """
    if pace is IN_TURN:
        return [(deed, i) for i, quantised in enumerate(is_quantised) for deed in (Deed if quantised else (Deed.READ,))]
    free_at = [0] * WORKERS
    timeline: list[tuple[int, bool, Deed, int]] = []
    done: list[int] = []
    for i, size in enumerate(sizes):
        begin = heapq.heappop(free_at)
        timeline.append((begin, False, Deed.READ, i))
        done.append(begin + 100 * size)
        heapq.heappush(free_at, done[-1])
    clock = 0
    for i, quantised in enumerate(is_quantised):
        clock = max(clock, done[i])
        if quantised:
            timeline.append((clock, True, Deed.QUANTISE, i))
            clock += pace * sizes[i]
            timeline.append((clock, True, Deed.DROP, i))
    timeline.sort(key=lambda entry: entry[:2])  # stable: each thread's own order stays
    return [(deed, i) for _, _, deed, i in timeline]
