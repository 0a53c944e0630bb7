"""`qplan which`: the cards that take a run."""

from __future__ import annotations

import sys
from typing import Any

from planner.cli import options


@options.takes_recipe()
def which(
    model: options.Model,
    stack: options.Stack = "auto",
    revision: options.Revision = None,
    json: options.Json = False,
    *,
    knobs: dict[str, Any],
) -> int:
    """
    The cards that a run fits on, one card each, the smallest first.

    The verdicts are those of `qplan gpus MODEL`, which shows the others too. Exit code 0: there is one; 1: there is none; 2: the request
    is wrong; 3: something it needs is missing or unreachable.
    """
    from planner import api
    from planner.render import terminal
    from planner.render import which as screen

    judged = api.verdicts(model, stack=stack, revision=revision, **knobs)
    found = tuple(card for card in judged if card.verdict.fits)
    named = {"stack": None if stack == "auto" else stack, "revision": revision}
    if json:
        shown = [screen.as_json(model, found, len(judged))]
    else:
        shown = screen.lines(model, found, judged, knobs, named, terminal.Terminal.of(sys.stdout))
    terminal.write(shown)
    return 0 if found else 1
