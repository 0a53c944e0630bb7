"""The screen of `qplan fit`: recipes for a card, the best first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.advice import short_name
from planner.render.estimate import gib, pasteable
from planner.render.terminal import Terminal, labelled, printable, wrap

if TYPE_CHECKING:
    from planner.recommending import Recommendation, Recommendations

_LABEL = 8


def lines(found: Recommendations, terminal: Terminal) -> list[str]:
    """
    The recipes as lines of text.

    Args:
        found: What to show.
        terminal: What can be shown.
    """
    card = short_name(found.device.name)
    rows: list[str] = []
    if not found.recipes:
        rows += [terminal.paint("NOTHING FITS", "bold", "red") + f" on {card}, {gib(found.device.usable_bytes)} GiB of it for tensors", ""]
    for number, recipe in enumerate(found.recipes, 1):
        rows += _recipe(number, recipe, terminal)
    for method, reason in found.refused.items():
        rows += labelled(method, wrap(printable(reason), terminal.width - _LABEL), _LABEL)
    if found.recipes:
        note = (
            f"Each was planned and simulated on {card}, and fits by more than the stated error; {found.effective_batch} samples a step in "
            "all of them. --emit trl writes the first as a training script."
        )
        rows += ["", *(terminal.paint(row, "dim") for row in wrap(note, terminal.width))]
    return rows


def _recipe(number: int, found: Recommendation, terminal: Terminal) -> list[str]:
    recipe, verdict = found.recipe, found.verdict
    words = [recipe.method, *([str(recipe.quantization)] if recipe.is_quantized else [])]
    words += [f"{recipe.batch_size} x {recipe.seq_len:,} tokens", f"{recipe.grad_accum} passes" if recipe.grad_accum > 1 else "one pass"]
    words += [f"checkpointing {'on' if recipe.gradient_checkpointing else 'off'}", str(recipe.optim)]
    spare = f"{gib(verdict.headroom_bytes)} of {gib(verdict.budget_bytes)} GiB to spare"
    rows = [terminal.paint(row, "bold") for row in wrap(f"{number}. {', '.join(words)}", terminal.width)]
    rows += [f"   {spare}, peak in {verdict.binding_phase.replace('_', ' ')}"]
    for trade in found.trades:
        rows += labelled("   traded", _traded(trade.option, trade.price, terminal.width - 10), 10)
    return [*rows, *("   " + row for row in pasteable(printable(found.command), terminal.width - 3)), ""]


def _traded(options: str, price: str, width: int) -> list[str]:
    """Options and their price; no line ends inside an option."""
    rows = [""]
    for part in (*options.replace(" --", "\0--").split("\0"), f"({price})"):
        if rows[-1] and len(rows[-1]) + 1 + len(part) > width:
            rows.append(part)
        else:
            rows[-1] = f"{rows[-1]} {part}".lstrip()
    return rows
