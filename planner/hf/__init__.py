"""
For Hugging Face's trainers: a callback that plans a run at its start, watches it, and compares at its end.

>>> from planner.hf import MemoryPlanCallback
>>> MemoryPlanCallback(seq_len=2048).seq_len
2048
"""

from importlib.util import find_spec

from planner.errors import MissingExtraError

if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
    raise MissingExtraError(f"planner.hf needs {' and '.join(missing)}, which is not installed", hint='pip install "qplan[torch]"')

from planner.hf.callback import MemoryPlanCallback, MemoryPlanWarning

__all__ = ["MemoryPlanCallback", "MemoryPlanWarning"]
