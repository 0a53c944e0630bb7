"""What `solve` answers: the largest value of a knob on a card, what binds there and what is beyond; of two knobs the frontier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from planner import advice
from planner.job import device_report
from planner.report import DeviceReport, Verdict
from planner.solving.line import Line, Point
from planner.spec import ModelSpec
from planner.value import plain

SCHEMA_VERSION = 1


class _Answer(ABC):
    """What a search on a card gives, whatever was searched."""

    _line: Line

    @property
    def model(self) -> str:
        """The model's id."""
        return self._line.job.spec.id

    @property
    def device(self) -> DeviceReport:
        """The card."""
        return device_report(self._line.device)

    @abstractmethod
    def model_dump(self) -> dict[str, Any]:
        """The contract of `qplan max --json`."""

    def model_dump_json(self, *, indent: int | None = None) -> str:
        """`model_dump` as JSON text."""
        import json

        return json.dumps(self.model_dump(), indent=indent)


class Solution(_Answer):
    """
    The largest value of one knob that a card takes.

    A value counts if the run comes to its end on the card (`Verdict.fits`, so that a tight one counts; the exit code of `qplan estimate`
    is 0); `comfortable` is the largest one that fits with more room than the stated error. What needs further simulations is found when
    somebody asks.

    Attributes:
        knob: The recipe's field.
        low, high: The range that was searched.
        multiple_of: Of what the values are multiples; the least value may be none.
        is_positions: Whether the range ends with the table of positions that the model has.
    """

    def __init__(self, line: Line, *, multiple_of: int, is_positions: bool = False) -> None:
        self._line = line
        self.knob, self.multiple_of, self.is_positions = line.knob, multiple_of, is_positions
        self.low, self.high = line.values[0], line.values[-1]

    def __repr__(self) -> str:
        return f"Solution({self.knob}={self.value}, {self.device.name}, headroom_bytes={self.headroom_bytes})"

    @cached_property
    def point(self) -> Point | None:
        """The largest value that fits, with its verdict; None where none does."""
        last = self._line.last_that_runs
        return None if last is None else self._line.point(last)

    @property
    def value(self) -> int | None:
        """The largest value that fits, a tight fit included; None where none does."""
        return None if self.point is None else self.point.value

    @property
    def verdict(self) -> Verdict | None:
        """The card's verdict on it."""
        return None if self.point is None else self.point.verdict

    @property
    def headroom_bytes(self) -> int | None:
        """What the card has left with it."""
        return None if self.point is None else self.point.verdict.headroom_bytes

    @property
    def binding_phase(self) -> str | None:
        """The phase that allocates the most with it."""
        return None if self.point is None else self.point.verdict.binding_phase

    @cached_property
    def comfortable(self) -> Point | None:
        """The largest value that fits with more room than the stated error; None where none does."""
        last = self._line.last_that_fits
        return None if last is None else self._line.point(last)

    @cached_property
    def beyond(self) -> Point | None:
        """The next value, which does not fit, and why not; None where the range ends or nothing fits."""
        last = self._line.last_that_runs
        return None if last is None or self.is_everything else self._line.point(last + 1, explains=True)

    @property
    def is_found(self) -> bool:
        """Whether there is a value that fits."""
        return self.point is not None

    @property
    def is_everything(self) -> bool:
        """Whether the largest value of the range fits, so that the card is not what ends it."""
        return self.value == self.high

    @cached_property
    def least(self) -> Point:
        """The smallest value of the range: what is needed at the least, where nothing fits."""
        return self._line.point(0, explains=True)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about the value."""
        trained = trained_positions(self._line.job.spec)
        if self.knob != "seq_len" or self.value is None or trained is None or self.value <= trained:
            return ()
        return (f"{self.value:,} tokens are more than the {trained:,} positions that {self.model} was made for",)

    @property
    def knobs(self) -> dict[str, Any]:
        """The knobs of `estimate` for the value."""
        return {**self._line.job.asked, self.knob: self.value}

    @property
    def command(self) -> str:
        """The command that plans the value; that plans the smallest one where nothing fits."""
        value = self.low if self.value is None else self.value
        return advice.command("estimate", self.model, {**self.knobs, self.knob: value}, self._line.job.options)

    @property
    def elsewhere(self) -> str:
        """The command that finds the cards which take the smallest value."""
        options = {name: option for name, option in self._line.job.options.items() if name in ("stack", "revision")}
        return advice.command("which", self.model, {**self.knobs, self.knob: self.low}, options)

    def model_dump(self) -> dict[str, Any]:
        """The contract of `qplan max --json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "device": self.device._asdict(),
            "knob": self.knob,
            "range": {"low": self.low, "high": self.high, "multiple_of": self.multiple_of},
            "value": self.value,
            "is_everything": self.is_everything,
            "at": plain(self.point),
            "comfortable": plain(self.comfortable),
            "beyond": plain(self.beyond),
            "least": plain(self.least) if self.value is None else None,
            "warnings": list(self.warnings),
        }


class Frontier(_Answer):
    """
    For each value of one knob the largest of another.

    Attributes:
        knobs: Both, as in the recipe.
        solutions: By the value of the first, in rising order: for all of them that leave room for the least of the second.
    """

    def __init__(self, knobs: tuple[str, str], solutions: Mapping[int, Solution], line: Line) -> None:
        self.knobs, self.solutions, self._line = knobs, dict(solutions), line

    def __repr__(self) -> str:
        return f"Frontier({self.knobs[0]} -> {self.knobs[1]}: {self.values})"

    @property
    def values(self) -> dict[int, int]:
        """For each value of the first knob the largest of the second."""
        return {first: found.value for first, found in self.solutions.items() if found.value is not None}

    @property
    def is_found(self) -> bool:
        """Whether there is a pair that fits."""
        return bool(self.solutions)

    @cached_property
    def least(self) -> Point:
        """The smallest of both: what is needed at the least."""
        return self._line.point(0, explains=True)

    def model_dump(self) -> dict[str, Any]:
        """The contract of `qplan max --json` with two knobs."""
        rows = [{self.knobs[0]: first, self.knobs[1]: found.value, "at": plain(found.point)} for first, found in self.solutions.items()]
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "device": self.device._asdict(),
            "knobs": list(self.knobs),
            "frontier": rows,
            "least": None if rows else plain(self.least),
        }


def trained_positions(spec: ModelSpec) -> int | None:
    """How many positions a model was made for, as its config says; None where it does not."""
    for section in (spec.config, spec.config.get("text_config") or {}):
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length"):
            if isinstance(section.get(name), int) and section[name] > 0:
                return int(section[name])
    return None
