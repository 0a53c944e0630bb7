"""A GPU: what it is called and how much of its memory one process may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.value import Value

if TYPE_CHECKING:
    from planner.own_values import OwnValues


class Device(Value):
    """
    One card.

    Attributes:
        name: As the driver spells it.
        total_bytes: What the driver reports to CUDA as the card's memory (`torch.cuda.get_device_properties().total_memory`).
        compute_capability: (major, minor).
        bf16: Whether it computes bf16 natively.
        used_bytes: What other processes hold now, for a card that is at hand.
        note: Where `total_bytes` comes from, in words.
        own: What was measured on such a card of this machine, which then counts in place of published figures; None where nothing was.
    """

    name: str
    total_bytes: int
    compute_capability: tuple[int, int]
    bf16: bool = True
    used_bytes: int = 0
    note: str = ""
    own: OwnValues | None = None
