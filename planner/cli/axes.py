"""The knobs of a recipe as axes of a sweep: each option may be repeated, or have several values at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from planner.cli import completion, options
from planner.errors import InvalidRecipeError
from planner.recipe import CHOICES, RANGES
from planner.sweeping.grid_file import whole_numbers

_WHOLE = ("targets", "modules_to_save", "rank_pattern")
"""Knobs whose values have commas in them: several are given by repeating the option."""


def takes_axes(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options of a recipe as axes; it gets those that were typed as one dict, `knobs`, in the order of `--help`."""

    def parsed(**given: Any) -> int:
        typed = {knob.name: given.pop(knob.name) for knob in options.KNOBS}
        return command(**given, knobs={knob.name: read(knob, typed[knob.name]) for knob in options.KNOBS if typed[knob.name]})

    own = inspect.signature(command, eval_str=True).parameters
    arguments = [p for p in own.values() if p.name != "knobs"]
    parsed.__doc__, parsed.__name__ = command.__doc__, command.__name__
    parsed.__annotations__ = {}
    knobs = [_parameter(knob) for knob in options.KNOBS]
    parsed.__signature__ = inspect.Signature(arguments[:1] + knobs + arguments[1:])  # type: ignore[attr-defined]
    return parsed


def read(knob: options.Knob, typed: list[Any]) -> Any:
    """
    One value, or a list of the values of an axis.

    Args:
        knob: Which.
        typed: What was typed, once for each time the option was given.

    Raises:
        InvalidRecipeError: A whole number's values are neither numbers nor a range, or there are none.
    """
    if knob.read is None:
        return typed[0] if len(typed) == 1 else typed
    if knob.name in RANGES:
        return _whole_numbers(knob.option, ",".join(typed))
    texts = typed if knob.name in _WHOLE else [text.strip() for part in typed for text in part.split(",")]
    values = [knob.read(text) for text in texts]
    return values[0] if len(values) == 1 else values


def _whole_numbers(option: str, text: str) -> Any:
    values = whole_numbers(text)
    several = [values] if isinstance(values, (int, str)) else values
    if not several or not all(isinstance(value, int) for value in several):
        wrong = "has no values" if not several else "is neither"
        raise InvalidRecipeError(
            f"{option} takes whole numbers (1,2,4) or a range without its end (1:65, 512:4097:512); `{text}` {wrong}",
            hint=f"{option} 1:9 is 1 to 8",
        )
    return values


def _parameter(knob: options.Knob) -> inspect.Parameter:
    if knob.read is None:
        declared = typer.Option(f"{knob.option}/--no-{knob.option[2:]}", help=knob.help, rich_help_panel=knob.panel, show_default=False)
        annotation: Any = Annotated[list[bool] | None, declared]
    else:
        metavar = "N,N|A:B" if knob.name in RANGES else options.metavar(knob)
        declared = typer.Option(
            knob.option, help=knob.help, rich_help_panel=knob.panel, metavar=metavar, show_default=False,
            autocompletion=completion.choices(CHOICES[knob.name]) if knob.name in CHOICES else None,
        )  # fmt: skip
        annotation = Annotated[list[str] | None, declared]
    return inspect.Parameter(knob.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation)
