"""
The command line. One file a command: parse, call the API, render, exit code.

Exit codes: 0 it fits; 1 it does not; 2 the request is wrong; 3 something it needs is missing or unreachable; 70 (EX_SOFTWARE of
sysexits.h) the program is wrong; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from typing import Any

EXIT_WRONG_REQUEST, EXIT_BUG, EXIT_INTERRUPTED = 2, 70, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and end the process with its exit code."""
    gc.disable()  # in a process of a fifth of a second, looking for cycles costs 5 % and frees nothing
    code = run(sys.argv[1:] if arguments is None else arguments)
    gc.freeze()  # nor does the interpreter look for them on its way out, which costs a tenth
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """
    Run one command.

    Args:
        arguments: What stands after `qplan`.

    Returns:
        The exit code. Faults of the request go to standard error, and so do faults of the program: never a traceback, unless
        QPLAN_DEBUG is set.
    """
    import typer

    from planner.cli import commands
    from planner.errors import QplanError

    try:
        code = commands.build(arguments).main(args=list(arguments), prog_name="qplan", standalone_mode=False)
    except QplanError as error:
        return _refuse(_as_typed(error.message), error.hint, error.exit_code)
    except commands.ParserError as error:
        return _refuse(*commands.explain(error, arguments), EXIT_WRONG_REQUEST)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:
        if os.environ.get("QPLAN_DEBUG"):
            raise
        return _refuse(
            f"qplan failed where it should not: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "this is a bug; please report the command, and the traceback that QPLAN_DEBUG=1 prints",
            EXIT_BUG,
        )
    return code if isinstance(code, int) else 0


def _refuse(message: str, hint: str | None, exit_code: int) -> int:
    """Say what is wrong and what to do, on standard error."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    return exit_code


def _as_typed(message: str) -> str:
    """A message about a knob with the knob's option for its field's name: `batch_size is 0` -> `--batch-size is 0`."""
    from planner.recipe import KNOBS

    name, is_, rest = message.partition(" is ")
    return f"--{name.replace('_', '-')}{is_}{rest}" if name in KNOBS and is_ else message


def __getattr__(name: str) -> Any:
    """`app`, the Typer application, for tools that look for one; built when asked."""
    if name == "app":
        from planner.cli import commands

        return commands.app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
