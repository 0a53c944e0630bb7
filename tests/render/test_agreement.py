"""The engines side by side, over ledgers of round numbers."""

from __future__ import annotations

from planner.agreement import Agreement
from planner.ledger import Allocation, Category, Ledger, Phase, Span
from planner.render import agreement as screen
from planner.render.terminal import Terminal
from planner.units import KIB, MIB

C = Category
SPANS = (Span(Phase.FORWARD, 0, 1), Span(Phase.BACKWARD, 1, 2), Span(Phase.OPTIMIZER_STEP, 2, 3))
SHARED = (
    Allocation("weight", C.PARAMETER, 3500 * MIB, 0, 3),
    Allocation("lora_A", C.ADAPTER, 40 * MIB, 0, 3),
    Allocation("batch", C.INPUT, 4 * KIB, 0, 3),
)
CLOSED = (
    *SHARED,
    Allocation("saved", C.ACTIVATION, 500 * MIB, 0, 2),
    Allocation("logits", C.LOGITS, 250 * MIB, 0, 2),
    Allocation("gradient", C.GRADIENT, 80 * MIB, 1, 3),
)
TRACED = (
    *SHARED,
    Allocation("aten.mm", C.ACTIVATION, 500 * MIB, 0, 2, scope="model.layers.0.mlp.down_proj"),
    Allocation("aten._log_softmax", C.ACTIVATION, 250 * MIB, 0, 2, scope="lm_head"),
    Allocation("gradient of weight", C.GRADIENT, 80 * MIB, 1, 3),
    Allocation("aten.mul.Tensor", C.TEMPORARY, 120 * MIB, 1, 2, scope="model.layers.31.self_attn"),
)


def shown(terminal: Terminal) -> list[str]:
    """The table of the two."""
    return screen.lines(Agreement(Ledger("analytic", CLOSED, SPANS), Ledger("traced", TRACED, SPANS)), terminal)


def test_the_table_is_as_it_was(golden):
    """Letter by letter: sums and categories of each phase, then why they differ."""
    golden("agreement", "\n".join(line.rstrip() for line in shown(Terminal())) + "\n")


def test_the_table_fits_80_columns():
    """No row is wider."""
    assert [line for line in shown(Terminal()) if len(line) > 80] == []


def test_what_is_below_a_mebibyte_is_left_out():
    """It is in the sums."""
    assert not any("input" in line for line in shown(Terminal()))


def test_phases_stand_out_where_there_are_colours():
    """Each sum in bold, no category."""
    bold = [line for line in shown(Terminal(colour=True)) if line.startswith("\x1b[1m")]

    assert [line[4:].split("  ")[0] for line in bold] == ["GiB at the peak of", "forward", "backward", "optimizer step"]
