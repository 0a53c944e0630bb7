"""`qplan gpus`: the cards, and what each says to a run."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from planner.cli import completion, options


@options.takes_recipe()
def gpus(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Also say what every card makes of training this model.",
            metavar="MODEL",
            show_default=False,
            autocompletion=completion.models,
        ),
    ] = None,
    stack: options.Stack = "auto",
    revision: options.Revision = None,
    json: options.Json = False,
    *,
    knobs: dict[str, Any],
) -> int:
    """
    List the cards; with a model, the verdict on every one of them.

    Exit code 0; with a model 1 where no card fits; 2: the request is wrong; 3: something it needs is missing or unreachable.
    """  # fmt: skip
    from planner import api
    from planner.errors import InvalidRecipeError
    from planner.render import gpus as screen
    from planner.render import terminal

    if model is None and knobs:
        raise InvalidRecipeError(
            "options of a run were given without a model", hint="qplan gpus MODEL " + " ".join(_typed(knobs))
        )
    cards = api.gpus()
    found = None if model is None else api.verdicts(model, stack=stack, revision=revision, **knobs)
    if json:
        terminal.write([screen.as_json(cards, found)])
    else:
        terminal.write(screen.lines(cards, found, terminal.Terminal.of(sys.stdout)))
    return 0 if found is None or any(card.verdict.fits for card in found) else 1


def _typed(knobs: dict[str, Any]) -> list[str]:
    from planner import advice

    return [advice.flags(knobs)]
