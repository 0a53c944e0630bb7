"""From a history to a ledger: each storage with the block that the allocator gives it on a card where there is room."""

from __future__ import annotations

from planner.allocator import AllocatorSettings, Block, CachingAllocator
from planner.history import History
from planner.ledger import Category, Ledger, Phase, Rows, Span


def keep_books(engine: str, history: History, settings: AllocatorSettings | None = None) -> Ledger:
    """
    Every storage with its block's bytes and its life, on a clock of one step an event.

    Args:
        engine: Who wrote the history.
        history: Of the full depth.
        settings: What the allocator is told.
    """
    allocator = CachingAllocator(settings=settings)
    allocate, free = allocator.allocate, allocator.free
    count, end = len(history.sizes), len(history.events)
    blocks: list[Block | None] = [None] * count
    sizes, begins, ends = [0] * count, [0] * count, [end] * count
    flushes = iter([*history.flushes, end + 1])
    flush = next(flushes)
    for step, event in enumerate(history.events):
        while step == flush:
            allocator.empty_cache()
            flush = next(flushes)
        if event >= 0:
            blocks[event] = block = allocate(history.sizes[event])
            sizes[event], begins[event] = block.size, step
        else:
            gone = blocks[~event]
            assert gone is not None
            free(gone)
            blocks[~event], ends[~event] = None, step
    rows = Rows()
    rows.names, rows.scopes, rows.categories = history.names, history.scopes, history.categories
    rows.sizes, rows.begins, rows.ends, rows.formulas = sizes, begins, ends, [""] * count
    return Ledger(engine, rows, [Span(s.phase, s.begin, s.end) for s in history.stretches])


def steady_bytes(ledger: Ledger) -> int:
    """What stays allocated after the last optimizer step."""
    return ledger.curve[_last_step(ledger)]


def resting_bytes(ledger: Ledger) -> int:
    """What of that stays whatever the card: all but cuBLAS's workspaces."""
    step = _last_step(ledger)
    return ledger.curve[step] - ledger.by_category(step).get(Category.WORKSPACE, 0)


def _last_step(ledger: Ledger) -> int:
    return max(span.end for span in ledger.timeline if span.phase is Phase.OPTIMIZER_STEP) - 1


def keep_exact_books(engine: str, history: History) -> Ledger:
    """
    Every storage with the very bytes that it has and its life, on a clock of one step an event: where no allocator rounds, as on the CPU.

    Args:
        engine: Who wrote the history.
        history: Of the full depth.
    """
    count, end = len(history.sizes), len(history.events)
    begins, ends = [0] * count, [end] * count
    for step, event in enumerate(history.events):
        if event >= 0:
            begins[event] = step
        else:
            ends[~event] = step
    rows = Rows()
    rows.names, rows.scopes, rows.categories = history.names, history.scopes, history.categories
    rows.sizes, rows.begins, rows.ends, rows.formulas = list(history.sizes), begins, ends, [""] * count
    return Ledger(engine, rows, [Span(s.phase, s.begin, s.end) for s in history.stretches])
