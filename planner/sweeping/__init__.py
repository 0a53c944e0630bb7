"""
Grids over models, cards and knobs, as rows by column.

`grid` says which points there are (`grid_file` reads them), `points` and `traced_points` compute them, `deciding` gives verdicts, `fanout`
and `clusters` spread traces over processes, `parts` is what a killed sweep goes on from, `table` and `frame` are the rows and their files.
"""

from planner.sweeping.sweeps import Sweep, sweep

__all__ = ["Sweep", "sweep"]
