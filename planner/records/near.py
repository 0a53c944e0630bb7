"""Which record says most about a run: the same card, and a near recipe."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from planner.device import Device
from planner.recipe import Recipe
from planner.records.record import Record
from planner.spec import ModelSpec
from planner.value import NamedTuple


class Near(NamedTuple):
    """
    A record that says how good a prediction is.

    Attributes:
        record: It.
        num_records: How many there are of this card, family, method and quantisation; this one is the nearest.
    """

    record: Record
    num_records: int

    def model_dump(self) -> dict[str, Any]:
        """As JSON has it: which run it was, and its peaks at each level, measured and predicted."""
        record = self.record
        return {
            "id": record.id,
            "time": record.time,
            "model_id": record.model["id"],
            "batch_size": record.recipe["batch_size"],
            "seq_len": record.recipe["seq_len"],
            "engine": record.engine,
            "peak": {name: level._asdict() for name, level in record.peak.items()},
            "num_records": self.num_records,
        }


def nearest(records: Iterable[Record], device: Device, spec: ModelSpec, recipe: Recipe) -> Near | None:
    """
    The record that is nearest to a run, if one is near.

    Near is: a card of the same name and compute capability, the same family, method and quantisation. Nearest of them is the one whose
    tokens in a micro-batch are nearest by their ratio; then whose number of parameters is; then the newest.

    Args:
        records: All of them.
        device: The card.
        spec: The model.
        recipe: The run, resolved.
    """
    near = [
        record
        for record in records
        if record.card is not None
        and (record.card["name"], tuple(record.card["compute_capability"])) == (device.name, device.compute_capability)
        and record.model["model_type"] == spec.model_type
        and (record.recipe["method"], record.recipe["quantization"]) == (recipe.method, recipe.quantization)
    ]
    if not near:
        return None
    newest_first = sorted(near, key=lambda record: record.time, reverse=True)
    best = min(
        newest_first,
        key=lambda record: (_apart(record.tokens, recipe.tokens), _apart(record.model["num_parameters"], spec.num_parameters)),
    )
    return Near(best, len(near))


def _apart(a: int, b: int) -> Fraction:
    """The ratio of the larger to the smaller."""
    return Fraction(max(a, b), max(min(a, b), 1))
