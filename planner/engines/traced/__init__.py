"""
The traced engine: the installed libraries' own code, run without data on a card that is not there, with every allocation recorded.

`analyse` plans a checkpoint under a recipe, `trace_step` a training step that the user wrote.
"""

from __future__ import annotations

from planner.engines.traced.analysis import analyse, analyse_on_cpu
from planner.engines.traced.custom import Custom, trace_step
from planner.engines.traced.run import DEFAULT_CAPABILITY, Progress, Trace, trace_run

__all__ = ["DEFAULT_CAPABILITY", "Custom", "Progress", "Trace", "analyse", "analyse_on_cpu", "trace_run", "trace_step"]
