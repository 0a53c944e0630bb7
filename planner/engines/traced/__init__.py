"""
The traced engine: the installed libraries' own code, run without data on a card that is not there, with every allocation recorded.

`trace_run` plans a checkpoint under a recipe, `trace_step` a training step that the user wrote.
"""

from __future__ import annotations

from planner.engines.traced.run import Trace, trace_run

__all__ = ["Trace", "trace_run"]
