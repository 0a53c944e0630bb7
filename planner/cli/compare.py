"""`qplan compare`: full fine-tuning, LoRA and QLoRA side by side."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from planner.cli import completion, options


@options.takes_recipe(without=("method",))
def compare(
    models: Annotated[
        list[str],
        typer.Argument(help="One or more models, each as for `estimate`.", metavar="MODEL", autocompletion=completion.models),
    ],
    stack: options.Stack = "auto",
    json: options.Json = False,
    *,
    knobs: dict[str, Any],
) -> int:
    """
    Full fine-tuning, LoRA and QLoRA side by side, for one model or more.

    Exit code 0 whether they fit or not; 2: the request is wrong; 3: something it needs is missing or unreachable.
    """
    from planner import api
    from planner.render import terminal

    found = api.compare(models, stack=stack, **knobs)
    if json:
        terminal.write([found.model_dump_json(indent=2)])
    else:
        from planner.render import compare as screen

        terminal.write(screen.lines(found, terminal.Terminal.of(sys.stdout)))
    return 0
