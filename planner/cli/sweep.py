"""`qplan sweep`: a grid over models, cards and anything in a recipe, to the screen or to a file."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated, Any

import typer

from planner.cli import completion, options
from planner.cli.axes import takes_axes

_MANY = 100
"""Rows that still fit a screen."""


@takes_axes
def sweep(
    models: Annotated[
        list[str],
        typer.Argument(
            help="One or more models, each as for `estimate`; or one grid.yaml or grid.toml, which may hold every option.",
            metavar="MODEL...|GRID",
            autocompletion=completion.models,
        ),
    ],
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu",
            help="A card's name or a size; repeat it, or separate several by commas. Default: the local card, if there is one.",
            metavar="NAME|SIZE,...",
            rich_help_panel=options.STACK,
            autocompletion=completion.gpus,
            show_default=False,
        ),
    ] = None,
    stack: Annotated[
        str | None,
        typer.Option(
            "--stack",
            help="Library versions: auto (this environment's), latest, or PKG==VERSION,... Default: auto.",
            metavar="auto|latest|PKG==VERSION,...",
            rich_help_panel=options.STACK,
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            help="analytic: in closed form. traced: by the installed libraries' own code, seconds a row. Default: analytic.",
            metavar="analytic|traced",
            rich_help_panel=options.STACK,
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        str | None,
        typer.Option("--jobs", help="Processes that trace side by side.", metavar="N", rich_help_panel=options.STACK, show_default=False),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            help="Trace on a Ray cluster: its address, auto, or local for one on this machine (needs qplan[ray]).",
            metavar="ADDRESS|local",
            rich_help_panel=options.STACK,
            show_default=False,
        ),
    ] = None,
    simulate: Annotated[
        str | None,
        typer.Option(
            "--simulate",
            help="Run the allocator where the verdict is open without (auto), for all rows, or for none. Default: auto.",
            metavar="auto|all|none",
            rich_help_panel=options.STACK,
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Write FILE.parquet (needs qplan[sweep]), FILE.csv or FILE.jsonl. Given again, a sweep that was killed goes on.",
            metavar="FILE",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew where another sweep to this file was killed.", rich_help_panel=options.OUTPUT)
    ] = False,
    fits_only: Annotated[bool, typer.Option("--fits-only", help="Leave out rows that do not run.", rich_help_panel=options.OUTPUT)] = False,
    pareto: Annotated[
        bool,
        typer.Option(
            "--pareto",
            help="Only the frontier: rows that run where no other of the same model, card and choices is as large in every number.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot",
            help="Draw it: FILE.png, FILE.svg or FILE.html (needs qplan[plot]); two knobs, a panel for each card or third knob's value.",
            metavar="FILE",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    json: options.Json = False,
    *,
    knobs: dict[str, Any],
) -> int:
    """
    Plan every combination of models, cards and knobs.

    An option with several values is an axis: 1,2,4 or 1:65 (without its end, 1:65:8 in steps) for whole numbers, values separated by
    commas for the others, or the option repeated. Exit code 0 whether they fit or not; 2: the request is wrong; 3: something it needs is
    missing or unreachable.
    """
    from planner.render import sweep as screen
    from planner.render import terminal
    from planner.sweeping.sweeps import sweep as api_sweep

    given = {"stack": stack, "engine": engine, "simulate": simulate, "gpu": _several(gpu)}
    asked = _asked(models, {name: value for name, value in given.items() if value is not None}, knobs)
    if output is not None:
        _check(output, json=json)
    if plot is not None:
        _check_plot(plot, output)
    shown: list[str] | None = None
    with terminal.progress(sys.stderr) as show:
        found = api_sweep(**asked, **_workers(jobs, ray), progress=screen.progress(show))
        if output is not None and not pareto:
            found.write(output, fits_only=fits_only, restart=restart)
        else:
            rows = screen.front(found) if pareto else found.fits_only() if fits_only else found
            if plot is not None:
                rows.heatmap(path=plot)
            elif output is not None:
                rows.save(output)
            else:
                shown = [screen.as_json(rows)] if json else list(screen.lines(rows, terminal.Terminal.of(sys.stdout), _MANY))
    if shown is None:
        terminal.write([f"wrote {plot or output}"], sys.stderr)
    else:
        terminal.write(shown)
    return 0


def _asked(models: list[str], given: dict[str, Any], knobs: dict[str, Any]) -> dict[str, Any]:
    """What was asked for; what is typed goes before what a grid's file has."""
    from planner.errors import InvalidGridError
    from planner.sweeping import grid_file

    files = [name for name in models if name.lower().endswith(grid_file.SUFFIXES)]
    if not files:
        return {"models": models, **given, **knobs}
    if len(models) > 1:
        raise InvalidGridError(f"`{files[0]}` is given with other models", hint="name the models in the file, under `models`")
    return {**grid_file.read_grid(files[0]), **given, **knobs}


def _several(typed: list[str] | None) -> list[str] | None:
    return None if not typed else [name.strip() for text in typed for name in text.split(",") if name.strip()]


def _workers(jobs: str | None, ray: str | None) -> dict[str, Any]:
    """Where traces run."""
    from planner.errors import InvalidRecipeError

    if jobs is not None and ray is not None:
        raise InvalidRecipeError("both --jobs and --ray are given; it must be one of them", hint="leave out --jobs")
    if ray is not None:
        from planner.sweeping.clusters import RayExecutor

        return {"executor": partial(RayExecutor, ray)}
    return {} if jobs is None else {"jobs": options.whole_number(jobs)}


def _check_plot(plot: str, output: str | None) -> None:
    """Refuse a picture that cannot be drawn, before any work is done."""
    from planner.errors import InvalidOutputError
    from planner.render.chart import style

    if output is not None:
        both = "--plot draws the rows, and --output writes them; both are given"
        raise InvalidOutputError(both, hint="leave out one, and run it again with the other")
    style(plot, interactive=False)


def _check(output: str, *, json: bool) -> None:
    """Refuse a file that cannot be written, before any work is done."""
    from planner.errors import InvalidOutputError
    from planner.sweeping.frame import check_output

    if json:
        raise InvalidOutputError("--json prints, and --output writes; both are given", hint="name a file that ends in .jsonl")
    check_output(output)
