"""
For Hugging Face's trainers: a callback that plans a run at its start, watches it, and compares at its end.

>>> from planner.hf import MemoryPlanCallback
>>> MemoryPlanCallback(seq_len=2048).seq_len
2048
"""

from planner.hf.callback import MemoryPlanCallback, MemoryPlanWarning

__all__ = ["MemoryPlanCallback", "MemoryPlanWarning"]
