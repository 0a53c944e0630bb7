"""What a family declares."""

from __future__ import annotations

from collections.abc import Callable

from planner.architecture.decoder import Decoder
from planner.architecture.fields import Fields
from planner.architecture.table import Table
from planner.value import NamedTuple


class Family(NamedTuple):
    """
    One model_type.

    Attributes:
        table: Writes the module table of a config.
        decoder: The structure of its text decoder, which the closed form walks; None where it does not know the family's step.
        needs: Where `decoder` is None: what the closed form would have to learn.
    """

    table: Callable[[Fields, Table], None]
    decoder: Callable[[Fields], Decoder] | None = None
    needs: str = ""
