"""What a verification leaves behind: its record, and what of the card is the card's own."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

from planner import own_values
from planner.formulas.workspace import PRODUCT_THREADS
from planner.records import Record, Store, make

if TYPE_CHECKING:
    from planner.device import Device
    from planner.recipe import Recipe
    from planner.spec import ModelSpec
    from planner.stack import Stack
    from planner.verification import Verification


def keep(
    found: Verification, spec: ModelSpec, recipe: Recipe, stack: Stack, card: Device | None, *, driver: str | None = None
) -> Record | None:
    """
    Keep the record of a verification, and the card's own context, workspace and reserve where they were measured.

    Args:
        found: What came of it.
        spec: The model.
        recipe: The resolved recipe.
        stack: The installed libraries.
        card: The card; None for the CPU.
        driver: Its driver's version.

    Returns:
        The record; None where memory ran out: nothing was measured to its end.

    Raises:
        InvalidOutputError: The system refused: no room, no right. What is kept already is not touched.
    """
    if found.measured is None or not found.rows:
        return None
    record = make(
        origin="verify",
        engine=found.predicted.engine,
        device=card,
        driver=driver,
        spec=spec,
        recipe=recipe,
        stack=stack,
        comparison=found.rows,
        peak=found.levels,
        process=found.apart._asdict(),
    )
    Store().add(record)
    if card is not None:
        _keep_own(found, stack, card, driver)
    return record


def _context(found: Verification) -> int | None:
    """
    What the process held at its peak beyond what torch had reserved: its context, and the kernels that it had loaded by then.

    That is what a verdict adds to reserved. Where paged states may be on the card too, which nobody tells apart, it is the context alone,
    as it was before the first kernel.
    """
    process, reserved = found.levels.get("process"), found.levels.get("reserved")
    if process is None or reserved is None or str(found.recipe["optim"]).startswith("paged_"):
        return found.apart.context_bytes
    return max(process.measured_bytes - reserved.measured_bytes, found.apart.context_bytes or 0)


def _keep_own(found: Verification, stack: Stack, card: Device, driver: str | None) -> None:
    """Without a context there is nothing that an estimate could take."""
    context, workspaces, reserved = _context(found), found.apart.workspace_bytes, found.levels.get("reserved")
    if not context or context < 0:
        return
    share = None
    if reserved is not None:
        share = own_values.reserve_per_mille(found.levels["allocated"].measured_bytes, reserved.measured_bytes)
    own_values.remember(
        card,
        own_values.OwnValues(
            context_bytes=context,
            workspace_bytes=None if workspaces is None else workspaces // len(PRODUCT_THREADS),
            reserve_per_mille=share,
            measured=measured_with(stack, driver),
        ),
    )


def measured_with(stack: Stack, driver: str | None) -> str:
    """When, and with which versions: today, in words."""
    day = datetime.now(timezone.utc).date().isoformat()
    return f"{day}, torch {stack.versions['torch']}" + (f", driver {driver}" if driver else "")
