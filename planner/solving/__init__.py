"""The largest value of a knob with which a run fits: `solver` searches a `line` of values, `solution` is what it answers."""

from planner.solving.solution import Frontier, Solution
from planner.solving.solver import solve

__all__ = ["Frontier", "Solution", "solve"]
