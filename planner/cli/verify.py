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
Max = Annotated[
    bool,
    typer.Option(
        "--max", help="Raise the batch (or what --vary names) until memory runs out, and check the planner's limit.",
        rich_help_panel=MEASUREMENT,
    ),
]
Vary = Annotated[
    str,
    typer.Option(
        "--vary",
        help="What --max raises.",
        metavar="batch-size|seq-len",
        rich_help_panel=MEASUREMENT,
        autocompletion=completion.choices(("batch-size", "seq-len")),
    ),
]
Record = Annotated[
    bool,
    typer.Option("--record/--no-record", help="Keep a record of it here (qplan records).", rich_help_panel=MEASUREMENT),
]


@options.takes_recipe()
def verify(
    model: options.Model,
    weights: Weights = "synthetic",
    steps: Steps = "2",
    device: Where = "auto",
    ceiling: Ceiling = None,
    timeout: Timeout = "3600",
    max: Max = False,  # the option's name
    vary: Vary = "batch-size",
    record: Record = True,
    revision: options.Revision = None,
    every_layer: options.EveryLayer = False,
    json: options.Json = False,
    *,
    knobs: dict[str, Any],
) -> int:
    """
    Run real training steps here, measure their memory, and lay the plan beside it.

    Needs qplan[torch]. Exit code 0: it ran (with --max: the limit is the predicted one); 1: memory ran out (the limit is another); 2: the request is wrong, or nothing could be measured; 3: something it
    needs is missing, such as a GPU.
    """
    from planner import limits, measuring, verifying
    from planner.render import limit, terminal
    from planner.render import verify as screen

    shared: dict[str, Any] = {
        "weights": weights,
        "device": device,
        "timeout": options.number(timeout),
        "ceiling": None if ceiling is None else measuring.size(ceiling),
        "revision": revision,
        **knobs,
    }
    shown: Any
    with terminal.progress(sys.stderr) as progress:
        if max:
            reached = limits.find_limit(model, vary=vary, progress=progress, **shared)
            shown, code = limit, 0 if reached.agrees else 1
            found: Any = reached
        else:
            count = options.whole_number(steps)
            found = verifying.verify(model, steps=count, every_layer=every_layer, record=record, progress=progress, **shared)
            shown, code = screen, 0 if found.failure is None else 1
    terminal.write([shown.as_json(found)] if json else shown.lines(found, terminal.Terminal.of(sys.stdout)))
    return code
