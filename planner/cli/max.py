"""`qplan max`: the largest batch, length or rank that a card takes."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from planner.cli import completion, options

_KNOBS = ("batch-size", "seq-len", "rank", "grad-accum")


@options.takes_recipe()
def max(  # noqa: A001 - a command has the name that is typed
    model: options.Model,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            help="The knob: its largest value is looked for. Given twice, for each value of the first the largest of the second. "
            "Default: batch-size.",
            metavar="|".join(_KNOBS),
            rich_help_panel=options.SEARCH,
            show_default=False,
            autocompletion=completion.choices(_KNOBS),
        ),
    ] = None,
    between: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            help="Look between these values: batch-size=1:64; one knob needs no name. Default: all; of the first of two 1, 2, 4, 8, ...",
            metavar="[KNOB=]LOW:HIGH",
            rich_help_panel=options.SEARCH,
            show_default=False,
        ),
    ] = None,
    multiple_of: Annotated[
        str | None,
        typer.Option(
            "--multiple-of",
            help="Look at multiples alone. Default: 64 for lengths, 8 for ranks, else 1.",
            metavar="N",
            rich_help_panel=options.SEARCH,
            show_default=False,
        ),
    ] = None,
    gpu: options.Gpu = None,
    stack: options.Stack = "auto",
    revision: options.Revision = None,
    engine: options.Engine = "analytic",
    json: options.Json = False,
    *,
    knobs: dict[str, Any],
) -> int:
    """
    The largest batch, length or rank that fits a card, exactly; of two knobs the frontier.

    Fits means what `qplan estimate` says: the run, simulated, comes to its end. Exit code 0: a value was found; 1: not even the smallest
    fits; 2: the request is wrong; 3: something it needs is missing or unreachable.
    """
    from planner.render import frontier, solution, terminal
    from planner.solving import solution as answers
    from planner.solving import solver as solving

    names = [name.replace("-", "_") for name in vary or ("batch-size",)]
    with terminal.progress(sys.stderr) as progress:
        found = solving.solve(
            model,
            gpu=gpu,
            vary=names,
            stack=stack,
            engine=engine,
            bounds=_bounds(between or (), names) or None,
            multiple_of=None if multiple_of is None else options.whole_number(multiple_of),
            revision=revision,
            progress=progress,
            **knobs,
        )
        screen = frontier if isinstance(found, answers.Frontier) else solution
        shown = [found.model_dump_json(indent=2)] if json else screen.lines(found, terminal.Terminal.of(sys.stdout))
    terminal.write(shown)
    return 0 if found.is_found else 1


def _bounds(typed: list[str] | tuple[str, ...], names: list[str]) -> dict[str, tuple[Any, ...]]:
    """`batch-size=1:64` as a knob and its bounds; what cannot be read is passed on, and refused."""
    found = {}
    for text in typed:
        name, is_named, values = text.rpartition("=")
        found[name.replace("-", "_") if is_named else names[0]] = tuple(options.whole_number(part) for part in values.split(":"))
    return found
