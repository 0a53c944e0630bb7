"""`solve`: the largest value of a knob that a card takes, what binds there, and what is beyond."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from planner import api
from planner import verdict as verdicts
from planner.api import Model
from planner.device import Device
from planner.errors import InvalidRecipeError, QplanError, UnknownDeviceError
from planner.job import Job
from planner.recipe import RANGES, make_recipe
from planner.solving.line import Line
from planner.solving.solution import Frontier, Solution, trained_positions
from planner.spec import ModelSpec
from planner.stack import Stack

KNOBS = tuple(name for name in RANGES if name != "lora_alpha")
"""What can be solved for: the knobs that are whole numbers and allocate something."""

STEPS = {"seq_len": 64, "rank": 8}
"""
Multiples that are looked at where no other are asked for: lengths and ranks are chosen so, and what lies between is too much alike to
be worth a hundred simulations. `multiple_of=1` looks at every value.
"""

Bounds = tuple[int, int] | Sequence[int]


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
) -> Solution | Frontier:
    """
    The largest value of a knob with which a run fits a card; of two knobs, for each value of the first the largest of the second.

    Exactly the value that estimates of every value, one by one, would find (see `planner.solving.line` for why), at the stated multiples.

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
    smallest = _values(job.spec, second, ranges.get(second))[0][0]
    line = Line(job.changed({second: smallest}), device, first, _steps(ranges.get(first), first))
    usable, found = verdicts.usable_bytes(device), {}
    for index, value in enumerate(line.values):
        if index and line.need_bytes(index) > usable:
            break
        solved = _solve_one(job.changed({first: value}), device, second, ranges.get(second), multiple_of, progress)
        if solved.value is not None:
            found[value] = solved
    return Frontier((first, second), found, line)


def _solve_one(
    job: Job, device: Device, knob: str, bounds: Any, multiple_of: int | None, progress: Callable[[str], None] | None
) -> Solution:
    values, is_positions = _values(job.spec, knob, bounds)
    step = multiple_of or (STEPS.get(knob, 1) if isinstance(values, range) else 1)
    multiples = _multiples(values, step)
    if not multiples and multiple_of is not None:
        raise InvalidRecipeError(
            f"multiple_of is {multiple_of}, of which none is from {values[0]} to {values[-1]}", hint="pass 1, which looks at every value"
        )
    if multiples:
        found = Solution(Line(job, device, knob, multiples, progress), multiple_of=step, is_positions=is_positions)
        if found.value is not None or multiple_of is not None or step == 1:
            return found
        values = range(values[0], multiples[0] + 1)  # perhaps less than one step fits
        is_positions = False
    return Solution(Line(job, device, knob, values, progress), multiple_of=1, is_positions=is_positions)


def _values(spec: ModelSpec, knob: str, bounds: Any) -> tuple[range | tuple[int, ...], bool]:
    """
    The values that can be looked at, in rising order, and whether the model's table of positions ends them.

    Raises:
        InvalidRecipeError: All of them are beyond that table.
    """
    named = tuple(sorted(set(bounds))) if bounds is not None and len(bounds) > 2 else None
    low, high = (named[0], named[-1]) if named else bounds or RANGES[knob]
    table = learned_positions(spec) if knob == "seq_len" else None
    if table is None or high <= table:
        return named or range(low, high + 1), False
    if low > table:
        raise InvalidRecipeError(
            f"bounds of {knob} begin at {low}, but {spec.id} has a table of {table} positions and takes no more", hint="look below"
        )
    return tuple(value for value in named if value <= table) if named else range(low, table + 1), True


def _multiples(values: range | tuple[int, ...], step: int) -> range | tuple[int, ...]:
    """Those of the values that are multiples."""
    if isinstance(values, range):
        return range(-(-values.start // step) * step, values.stop, step)
    return tuple(value for value in values if value % step == 0)


def _steps(bounds: Any, knob: str) -> tuple[int, ...] | range:
    """The values of the first of two knobs."""
    if bounds is None:
        return tuple(1 << power for power in range(RANGES[knob][1].bit_length()) if 1 << power <= RANGES[knob][1])
    return range(bounds[0], bounds[1] + 1) if len(bounds) == 2 else tuple(sorted(set(bounds)))


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
