"""`qplan models`: the bundled checkpoints."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from planner.cli import options


def models(
    query: Annotated[
        list[str] | None, typer.Argument(help="Words that the id or the family must have.", metavar="QUERY", show_default=False)
    ] = None,
    json: options.Json = False,
) -> int:
    """
    List the bundled checkpoints: no network is needed for these.

    Exit code 0; 2 where no bundled checkpoint has these words.
    """
    from planner import api
    from planner.errors import UnknownModelError
    from planner.render import models as screen
    from planner.render import terminal

    words = " ".join(query or ())
    found = api.models(words)
    if not found:
        raise UnknownModelError(
            f"no bundled checkpoint has `{words}`", hint="a Hub id, a folder or a config.json can be planned too"
        )
    if json:
        terminal.write([screen.as_json(found)])
    else:
        terminal.write(screen.lines(found, terminal.Terminal.of(sys.stdout)))
    return 0
