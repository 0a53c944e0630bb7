"""Columns as a sweep has them, whose verdicts follow from a rule that tests can state."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from planner.units import GIB

CARDS = {"Tesla T4": 15, "NVIDIA L40S": 44}
"""GiB."""
TIGHT_GIB = 3


def needs(batch: int, length: int, rank: int = 16) -> int:
    """Bytes: 6 GiB at rest, a GiB for every 1,024 tokens, and a GiB for every 64 of rank."""
    return 6 * GIB + batch * length * (GIB >> 10) + rank * (GIB >> 6)


def outcome(spare: int) -> str:
    """The verdict of what is to spare."""
    return "does_not_fit" if spare < 0 else "tight" if spare < TIGHT_GIB * GIB else "fits"


def columns(
    cards: Sequence[str] = tuple(CARDS),
    batches: Sequence[int] = (1, 2, 4, 8),
    lengths: Sequence[int] = (1024, 2048, 4096),
    ranks: Sequence[int] = (16,),
) -> dict[str, np.ndarray[Any, Any]]:
    """Every combination, the card slowest; shuffled, since nothing may hang on the order."""
    rows = list(product(cards, batches, lengths, ranks))
    np.random.default_rng(0).shuffle(rows)
    sizes = np.array([needs(int(b), int(s), int(r)) for _, b, s, r in rows])
    spare = np.array([CARDS[str(card)] * GIB for card, *_ in rows]) - sizes
    found: dict[str, Any] = {
        "model": ["tiny"] * len(rows),
        "gpu": [str(card) for card, *_ in rows],
        "batch_size": [int(b) for _, b, _, _ in rows],
        "seq_len": [int(s) for _, _, s, _ in rows],
        "rank": [int(r) for *_, r in rows],
        "allocated_bytes": sizes,
        "process_bytes": sizes,
        "headroom_bytes": spare,
        "outcome": [outcome(int(each)) for each in spare],
        "error": [None] * len(rows),
    }
    texts = ("model", "gpu", "outcome", "error")
    return {name: np.array(values, dtype=object if name in texts else np.int64) for name, values in found.items()}
