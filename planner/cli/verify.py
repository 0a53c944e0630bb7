"""`qplan verify`: the run done for real here, its memory measured, beside the plan."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from planner.cli import completion, options

MEASUREMENT = "The measurement"

Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        help="synthetic: made on the device, nothing is downloaded; hub: the real checkpoint; or a folder that has it.",
        metavar="synthetic|hub|PATH",
        rich_help_panel=MEASUREMENT,
        autocompletion=completion.choices(("synthetic", "hub")),
    ),
]
Steps = Annotated[
    str, typer.Option("--steps", help="Measured steps, after one that warms up.", metavar="N", rich_help_panel=MEASUREMENT)
]
Where = Annotated[
    str,
    typer.Option(
        "--device",
        help="Where it runs: the first card, another one, or the CPU (small models).",
        metavar="auto|cuda|cuda:N|cpu",
        rich_help_panel=MEASUREMENT,
        autocompletion=completion.choices(("auto", "cuda", "cpu")),
    ),
]
Timeout = Annotated[
    str, typer.Option("--timeout", help="Seconds after which a run is ended.", metavar="SECONDS", rich_help_panel=MEASUREMENT)
]
Ceiling = Annotated[
    str | None,
    typer.Option(
        "--ceiling",
        help="With --device cpu: memory that may be allocated (200MiB, 2GiB); more is out of memory, as on a card.",
        metavar="SIZE",
        rich_help_panel=MEASUREMENT,
        show_default=False,
    ),
]


@options.takes_recipe()
def verify(
    model: options.Model,
    weights: Weights = "synthetic",
    steps: Steps = "2",
    device: Where = "auto",
    ceiling: Ceiling = None,
    timeout: Timeout = "3600",
    revision: options.Revision = None,
    every_layer: options.EveryLayer = False,
    json: options.Json = False,
    *,
    knobs: dict[str, Any],
) -> int:
    """
    Run real training steps here, measure their memory, and lay the plan beside it.

    Needs qplan[torch]. Exit code 0: it ran; 1: memory ran out; 2: the request is wrong, or nothing could be measured; 3: something it
    needs is missing, such as a GPU.
    """
    from planner import verifying
    from planner.render import terminal
    from planner.render import verify as screen

    with terminal.progress(sys.stderr) as progress:
        found = verifying.verify(
            model,
            weights=weights,
            steps=options.whole_number(steps),
            device=device,
            timeout=options.number(timeout),
            ceiling=None if ceiling is None else verifying.size(ceiling),
            revision=revision,
            every_layer=every_layer,
            progress=progress,
            **knobs,
        )
    terminal.write([screen.as_json(found)] if json else screen.lines(found, terminal.Terminal.of(sys.stdout)))
    return 0 if found.failure is None else 1
