"""`qplan doctor`: what this machine has, and what that means for a plan."""

from __future__ import annotations

import sys

from planner.cli import options


def doctor(json: options.Json = False) -> int:
    """
    Look at this machine: driver, cards and who uses them, versions of the stack, settings of the allocator.

    Exit code 0, also where something is missing: it is told, and what works without it. 3: nothing can be told.
    """
    from planner.doctor import diagnose
    from planner.render import doctor as screen
    from planner.render import terminal

    found = diagnose()
    if json:
        terminal.write([screen.as_json(found)])
    else:
        terminal.write(screen.lines(found, terminal.Terminal.of(sys.stdout)))
    return 0
