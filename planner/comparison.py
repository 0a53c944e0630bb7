"""Ways to train, side by side: one row a model and method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from planner.display import Displayed
from planner.errors import QplanError
from planner.ledger import Category
from planner.report import Report
from planner.value import NamedTuple, Value

SCHEMA_VERSION = 1


class Row(NamedTuple):
    """
    One model and method.

    Attributes:
        model: The model's id.
        method: `full`, `lora` or `qlora`.
        weights_bytes: Base weights and what quantisation keeps beside them, at the peak; None where the method was refused.
        num_trainable_parameters: What is trained.
        allocated_bytes: The peak, as `torch.cuda.max_memory_allocated()` would say.
        process_bytes: The peak, as nvidia-smi would show it.
        binding_phase: The phase of the peak.
        smallest_card: The smallest common card that takes it; None where none does.
        outcome: That card's verdict.
        error: Why the method was refused.
    """

    model: str
    method: str
    weights_bytes: int | None = None
    num_trainable_parameters: int | None = None
    allocated_bytes: int | None = None
    process_bytes: int | None = None
    binding_phase: str | None = None
    smallest_card: str | None = None
    outcome: str | None = None
    error: str | None = None


class Comparison(Value, Displayed):
    """All rows, model by model."""

    rows: tuple[Row, ...]
    schema_version: int = SCHEMA_VERSION

    def model_dump(self) -> dict[str, Any]:
        """The contract of `qplan compare --json`."""
        return {"schema_version": self.schema_version, "rows": [row._asdict() for row in self.rows]}

    def model_dump_json(self, *, indent: int | None = None) -> str:
        """`model_dump` as JSON text."""
        import json

        return json.dumps(self.model_dump(), indent=indent)


def row(model: str, method: str, run: Callable[[], Report]) -> Row:
    """
    The row of one model and method.

    Args:
        model: The model's id.
        method: The method.
        run: Plans it; what it refuses is told in the row.
    """
    try:
        report = run()
    except QplanError as error:
        return Row(model, method, error=error.message)
    smallest = next((card for card in report.outcomes if card.outcome != "does_not_fit"), None)
    weights = (Category.PARAMETER, Category.QUANT_STATE)
    return Row(
        model=model,
        method=method,
        weights_bytes=sum(report.peak.by_category.get(category.value, 0) for category in weights),
        num_trainable_parameters=report.model.num_trainable_parameters,
        allocated_bytes=report.peak.allocated_bytes,
        process_bytes=report.peak.process_bytes,
        binding_phase=report.peak.phase,
        smallest_card=None if smallest is None else smallest.name,
        outcome=None if smallest is None else smallest.outcome,
    )
