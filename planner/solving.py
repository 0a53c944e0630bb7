"""`solve`: the largest value of a knob that a card takes, what binds there, and what is beyond."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from planner import advice, api
from planner import verdict as verdicts
from planner.api import Model
from planner.device import Device
from planner.errors import InvalidRecipeError, QplanError, UnknownDeviceError
from planner.job import Job, device_report
from planner.line import Line, Point
from planner.recipe import RANGES, make_recipe
from planner.report import DeviceReport, Verdict
from planner.spec import ModelSpec
from planner.stack import Stack

SCHEMA_VERSION = 1

KNOBS = tuple(name for name in RANGES if name != "lora_alpha")
"""What can be solved for: the knobs that are whole numbers and allocate something."""

STEPS = {"seq_len": 64, "rank": 8}
"""
Multiples that are looked at where no other are asked for: lengths and ranks are chosen so, and what lies between is too much alike to
be worth a hundred simulations. `multiple_of=1` looks at every value.
"""

Bounds = tuple[int, int] | Sequence[int]


class Solution:
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

    @property
    def model(self) -> str:
        """The model's id."""
        return self._line.job.spec.id

    @property
    def device(self) -> DeviceReport:
        """The card."""
        return device_report(self._line.device)

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
            "at": _dumped(self.point),
            "comfortable": _dumped(self.comfortable),
            "beyond": _dumped(self.beyond),
            "least": _dumped(self.least) if self.value is None else None,
            "warnings": list(self.warnings),
        }


class Frontier:
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
    def model(self) -> str:
        """The model's id."""
        return self._line.job.spec.id

    @property
    def device(self) -> DeviceReport:
        """The card."""
        return device_report(self._line.device)

    @property
    def values(self) -> dict[int, int]:
        """For each value of the first knob the largest of the second."""
        return {first: found.value for first, found in self.solutions.items() if found.value is not None}

    @cached_property
    def least(self) -> Point:
        """The smallest of both: what is needed at the least."""
        return self._line.point(0, explains=True)

    def model_dump(self) -> dict[str, Any]:
        """The contract of `qplan max --json` with two knobs."""
        rows = [{self.knobs[0]: first, self.knobs[1]: found.value, "at": _dumped(found.point)} for first, found in self.solutions.items()]
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "device": self.device._asdict(),
            "knobs": list(self.knobs),
            "frontier": rows,
            "least": None if rows else _dumped(self.least),
        }


def solve(
    model: Model,
    *,
    gpu: str | Device | None = None,
    vary: str | Sequence[str] = "batch_size",
    stack: str | Stack = "auto",
    engine: str = "analytic",
    bounds: Bounds | Mapping[str, Bounds] | None = None,
    multiple_of: int | None = None,
    revision: str | None = None,
    progress: Callable[[str], None] | None = None,
    **knobs: Any,
) -> Any:
    """
    The largest value of a knob with which a run fits a card; of two knobs, for each value of the first the largest of the second.

    Exactly the value that estimates of every value, one by one, would find (see `planner.line` for why), at the stated multiples.

    Args:
        model: As for `estimate`.
        gpu: A card's name or size; None for the local one.
        vary: The knob: `batch_size`, `seq_len`, `rank` or `grad_accum`; or two of them.
        stack: As for `estimate`.
        engine: As for `estimate`; `traced` takes seconds for every value that it looks at.
        bounds: The smallest and the largest value to look at, or all values to look at if there are more than two; by knob where two
            are varied. None: from 1 to the end of the knob's range, or of the model's table of positions; of the first of two knobs
            1, 2, 4, 8 and so on.
        multiple_of: Of the (second) knob only multiples are looked at. None: 64 for lengths, 8 for ranks, and smaller ones where no
            multiple fits; 1 else.
        revision: As for `estimate`.
        progress: Is told what is simulated.
        knobs: The other fields of `Recipe`.

    Returns:
        A `Solution`; a `Frontier` where two knobs are varied.

    Raises:
        QplanError: The request is wrong, or what it needs is missing.

    >>> solve("meta-llama/Llama-3.1-8B", gpu="t4", vary="batch_size", stack="latest").value
    13
    """
    names = (vary,) if isinstance(vary, str) else tuple(vary)
    _check(names, knobs, bounds, multiple_of)
    job, device = _job(model, gpu, stack, engine, revision, progress, knobs)
    ranges = {names[0]: bounds} if bounds is not None and not isinstance(bounds, Mapping) else dict(bounds or {})
    if len(names) == 1:
        return _solve_one(job, device, names[0], ranges.get(names[0]), multiple_of, progress)
    first, second = names
    line = Line(job.changed({second: _values(job.spec, second, ranges.get(second), 1)[0][0]}), device, first, _steps(ranges.get(first), first))
    usable, found = verdicts.usable_bytes(device), {}
    for index, value in enumerate(line.values):
        if line.need_bytes(index) > usable:
            break
        solved = _solve_one(job.changed({first: value}), device, second, ranges.get(second), multiple_of, progress)
        if solved.value is not None:
            found[value] = solved
    return Frontier((first, second), found, line)


def _solve_one(
    job: Job, device: Device, knob: str, bounds: Any, multiple_of: int | None, progress: Callable[[str], None] | None
) -> Solution:
    step = multiple_of or (1 if bounds is not None and len(bounds) > 2 else STEPS.get(knob, 1))
    values, is_positions = _values(job.spec, knob, bounds, step)
    found = Solution(Line(job, device, knob, values, progress), multiple_of=step, is_positions=is_positions)
    if found.value is None and multiple_of is None and step > 1:  # perhaps less than one step fits
        values, is_positions = _values(job.spec, knob, bounds, 1)
        below = tuple(value for value in values[:step] if value < found.low) or (values[0],)
        found = Solution(Line(job, device, knob, below, progress), multiple_of=1)
    return found


def _values(spec: ModelSpec, knob: str, bounds: Any, step: int) -> tuple[range | tuple[int, ...], bool]:
    """The values to look at, in rising order, and whether the model's table of positions ends them."""
    if bounds is not None and len(bounds) > 2:
        return tuple(sorted(set(bounds))), False
    low, high = bounds or RANGES[knob]
    table = learned_positions(spec) if knob == "seq_len" else None
    is_positions = table is not None and table < high
    if table is not None and table < high:
        high = table
    values = range(-(-low // step) * step, high + 1, step)
    return (values, is_positions) if len(values) else (range(low, high + 1), is_positions)


def _steps(bounds: Any, knob: str) -> tuple[int, ...] | range:
    """The values of the first of two knobs."""
    if bounds is None:
        return tuple(1 << power for power in range(RANGES[knob][1].bit_length()) if 1 << power <= RANGES[knob][1])
    return range(bounds[0], bounds[1] + 1) if len(bounds) == 2 else tuple(sorted(set(bounds)))


def trained_positions(spec: ModelSpec) -> int | None:
    """How many positions a model was made for, as its config says; None where it does not."""
    for section in (spec.config, spec.config.get("text_config") or {}):
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length"):
            if isinstance(section.get(name), int) and section[name] > 0:
                return int(section[name])
    return None


def learned_positions(spec: ModelSpec) -> int | None:
    """The rows of a model's table of positions, beyond which it cannot run; None where positions are computed, or not known to be."""
    from planner.engines.analytic import decoder_of

    try:
        return trained_positions(spec) if decoder_of(spec).positions else None
    except QplanError:  # a family that the closed form does not know
        return None


def _job(
    model: Model,
    gpu: str | Device | None,
    stack: str | Stack,
    engine: str,
    revision: str | None,
    progress: Callable[[str], None] | None,
    knobs: dict[str, Any],
) -> tuple[Job, Device]:
    job, device = api.plan(model, gpu=gpu, stack=stack, engine=engine, revision=revision, progress=progress, **knobs)
    if device is None:
        raise UnknownDeviceError("no card is named and none is found here", hint="pass --gpu NAME or --gpu SIZE; qplan gpus lists names")
    return job, device


def _check(names: tuple[str, ...], knobs: dict[str, Any], bounds: Any, multiple_of: int | None) -> None:
    """Refuse knobs that cannot be varied, twice or none, and ranges that are none."""
    if not 1 <= len(names) <= 2 or len(set(names)) < len(names):
        raise InvalidRecipeError(f"vary names {len(names)} knobs ({', '.join(names)}); it must name one, or two that differ")
    for name in names:
        if name not in KNOBS:
            raise InvalidRecipeError(f"vary names {name}; it must be one of {', '.join(KNOBS)}", hint="vary batch_size, or seq_len")
        if name in knobs:
            raise InvalidRecipeError(f"{name} is {knobs[name]}, and is to be varied too", hint="leave one of both out")
        if name == "rank" and make_recipe(**knobs).method == "full":
            raise InvalidRecipeError("vary names rank, but full fine-tuning has no adapters", hint="vary batch_size, or pass a method")
    if multiple_of is not None and (type(multiple_of) is not int or multiple_of < 1):
        raise InvalidRecipeError(f"multiple_of is {multiple_of!r}; it must be a whole number from 1 up")
    ranges = bounds if isinstance(bounds, Mapping) else {} if bounds is None else {names[0]: bounds}
    for name, values in ranges.items():
        _check_bounds(name, values, names)


def _check_bounds(name: str, values: Any, names: tuple[str, ...]) -> None:
    if name not in names:
        raise InvalidRecipeError(f"bounds name {name}, which is not varied; varied is {', '.join(names)}")
    low, high = RANGES[name]
    numbers = list(values) if isinstance(values, (tuple, list, range)) else []
    is_range = len(numbers) >= 2 and all(type(value) is int and low <= value <= high for value in numbers)
    if not is_range or (len(numbers) == 2 and numbers[0] > numbers[1]):
        raise InvalidRecipeError(
            f"bounds of {name} are {values!r}; they must be the smallest and the largest value, from {low} to {high}",
            hint="pass for example (1, 64)",
        )


def _dumped(point: Point | None) -> dict[str, Any] | None:
    """A point as JSON can hold it."""
    if point is None:
        return None
    verdict = point.verdict._asdict()
    if point.verdict.failure is not None:
        verdict["failure"] = point.verdict.failure._asdict()
    return {"value": point.value, "allocated_bytes": point.allocated_bytes, "verdict": verdict}
