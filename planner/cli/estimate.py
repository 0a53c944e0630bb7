"""`qplan estimate`: what one run needs, and whether a card has it."""

from __future__ import annotations

import sys
from typing import Any

from planner.cli import options


@options.takes_recipe()
def estimate(
    model: options.Model,
    gpu: options.Gpu = None,
    stack: options.Stack = "auto",
    revision: options.Revision = None,
    engine: options.Engine = "analytic",
    json: options.Json = False,
    explain: options.Explain = False,
    *,
    knobs: dict[str, Any],
) -> int:
    """
    What fine-tuning a model needs of a GPU, and whether it fits.

    The defaults are the canonical QLoRA script. Exit code 0: it fits, or only just (where no card is named: on one of the common
    ones); 1: it does not; 2: the request is wrong; 3: something it needs is missing or unreachable.
    """
    from planner import api
    from planner.render import terminal

    report = api.estimate(model, gpu=gpu, stack=stack, revision=revision, engine=engine, **knobs)
    if json:
        terminal.write([report.model_dump_json(indent=2)])
    else:
        from planner.render import estimate as screen

        terminal.write(screen.lines(report, terminal.Terminal.of(sys.stdout), explain=explain))
    return 0 if report.fits else 1
