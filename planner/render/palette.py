"""One colour a category, for every picture: told apart on light and dark ground, and by people who do not see red and green."""

from __future__ import annotations

from planner.ledger import Category

COLOURS: dict[Category, str] = {
    Category.PARAMETER: "#4a6fa5",
    Category.QUANT_STATE: "#8fb3e0",
    Category.BUFFER: "#7d8a99",
    Category.WORKSPACE: "#b9b0a2",
    Category.ADAPTER: "#12908e",
    Category.OPTIMIZER_STATE: "#7b5ea7",
    Category.GRADIENT: "#c8541a",
    Category.ACTIVATION: "#6aa84f",
    Category.LOGITS: "#c94f6d",
    Category.TEMPORARY: "#f2c14e",
    Category.INPUT: "#c9a0dc",
    Category.UNATTRIBUTED: "#555555",
}
"""In the order of stacking: what rests in memory lies at the bottom, what comes and goes at the top."""


def label(category: Category) -> str:
    """A category for people."""
    return category.value.replace("_", " ")


OUTCOMES = {"fits": "#2f7ebc", "tight": "#f2c14e", "does_not_fit": "#b3402e"}
"""Blue, yellow and red: verdicts that are told apart without seeing red and green; a word or a number always stands beside them."""
RESERVE = "#d9d9d9"
"""What a process holds beyond its tensors: what the allocator keeps, and the CUDA context."""
GROUND = "#f7f7f7"
"""The middle of a scale around zero."""

COLUMN_TITLES = {
    "allocated_bytes": "allocated, GiB",
    "reserved_bytes": "reserved, GiB",
    "process_bytes": "process, GiB",
    "headroom_bytes": "to spare, GiB",
}
"""What columns of sizes are called beside a scale."""


def axis_title(knob: str) -> str:
    """
    A knob beside an axis.

    >>> axis_title("seq_len"), axis_title("batch_size")
    ('sequence length, tokens', 'batch size')
    """
    return {"seq_len": "sequence length, tokens", "gpu": "card"}.get(knob, knob.replace("_", " "))
