"""`qplan fit`: whole recipes for a card, and the script that runs one."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from planner.cli import completion, options


@options.takes_recipe(without=("batch_size", "grad_accum"))
def fit(
    model: options.Model,
    effective_batch: Annotated[
        str,
        typer.Option(
            "--effective-batch",
            help="Samples of one optimizer step: micro-batch times accumulation.",
            metavar="INTEGER",
            rich_help_panel=options.SEARCH,
        ),
    ] = "16",
    emit: Annotated[
        str | None,
        typer.Option(
            "--emit",
            help="Print a training script of the recipe instead: trl (transformers, PEFT, bitsandbytes, SFTTrainer).",
            metavar="trl",
            rich_help_panel=options.OUTPUT,
            show_default=False,
            autocompletion=completion.choices(("trl",)),
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="Write the script there: FILE.py.", metavar="FILE", rich_help_panel=options.OUTPUT, show_default=False
        ),
    ] = None,
    number: Annotated[
        str, typer.Option("--number", help="Which of the recipes the script is of.", metavar="N", rich_help_panel=options.OUTPUT)
    ] = "1",
    gpu: options.Gpu = None,
    stack: options.Stack = "auto",
    revision: options.Revision = None,
    json: options.Json = False,
    *,
    knobs: dict[str, Any],
) -> int:
    """
    Whole recipes that fit a card, the best first, with what each trades away.

    Every knob that is given is kept. Exit code 0: there is one; 1: there is none; 2: the request is wrong; 3: something it needs is
    missing or unreachable.
    """
    from planner import recommending
    from planner.render import fit as screen
    from planner.render import terminal

    _check(emit, output, as_json=json)
    with terminal.progress(sys.stderr) as progress:
        found = recommending.recommend(
            model,
            gpu=gpu,
            effective_batch=options.whole_number(effective_batch),
            stack=stack,
            revision=revision,
            progress=progress,
            **knobs,
        )
    if emit is not None and found.recipes:
        _emit(found, emit, output, options.whole_number(number))
    else:
        terminal.write([found.model_dump_json(indent=2)] if json else screen.lines(found, terminal.Terminal.of(sys.stdout)))
    return 0 if found.recipes else 1


def _check(emit: str | None, output: str | None, *, as_json: bool) -> None:
    """Refuse what cannot be written, before any work is done."""
    from planner.errors import InvalidOutputError, InvalidRecipeError
    from planner.files import output_path
    from planner.render.script import KINDS

    if emit is not None and emit not in KINDS:
        raise InvalidRecipeError(f"emit is {emit}; it must be {', '.join(KINDS)}", hint="pass --emit trl")
    if emit is not None and as_json:
        raise InvalidOutputError("--emit and --json are both given; one of them is printed", hint="leave --json out")
    if output is not None and emit is None:
        raise InvalidOutputError("--output is given without a script to write", hint="add --emit trl")
    if output is not None:
        output_path(output, (".py",))


def _emit(found: Any, kind: str, output: str | None, number: Any) -> None:
    """Print or write the script of one recipe."""
    from pathlib import Path

    from planner.errors import InvalidRecipeError
    from planner.render import terminal

    if type(number) is not int or not 1 <= number <= len(found.recipes):
        raise InvalidRecipeError(f"number is {number}; it must be one of the {len(found.recipes)} recipes", hint="pass --number 1")
    text = found.recipes[number - 1].script(kind)
    if output is None:
        terminal.write(text.splitlines())
        return
    Path(output).write_text(text, encoding="utf-8")
    terminal.write([f"wrote {output}: {found.recipes[number - 1].command}"], sys.stderr)
