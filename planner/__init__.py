"""
GPU memory planner for LLM fine-tuning.

>>> from planner import estimate
>>> estimate("meta-llama/Llama-2-70b-hf", rank=16, gpu="a6000").verdict.outcome
'fits'

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.api import compare, estimate, gpus, models, verdicts
    from planner.device import Device
    from planner.errors import QplanError
    from planner.ledger import Ledger
    from planner.recipe import Recipe
    from planner.recommending import recommend
    from planner.render.breakdown import bars
    from planner.report import Report, Verdict
    from planner.solving import Frontier, Solution, solve
    from planner.spec import ModelSpec
    from planner.stack import Stack
    from planner.sweeping import sweep
    from planner.tracing import trace
    from planner.verification import Verification
    from planner.verifying import verify

__version__ = "0.1.0"

__all__ = [
    "Device",
    "Frontier",
    "Ledger",
    "ModelSpec",
    "QplanError",
    "Recipe",
    "Report",
    "Solution",
    "Stack",
    "Verdict",
    "Verification",
    "__version__",
    "bars",
    "compare",
    "estimate",
    "gpus",
    "models",
    "recommend",
    "solve",
    "sweep",
    "trace",
    "verdicts",
    "verify",
]

_HOME = {
    "Device": "device",
    "Frontier": "solving",
    "Ledger": "ledger",
    "ModelSpec": "spec",
    "QplanError": "errors",
    "Recipe": "recipe",
    "Report": "report",
    "Solution": "solving",
    "Stack": "stack",
    "Verdict": "report",
    "Verification": "verification",
    "bars": "render.breakdown",
    "compare": "api",
    "estimate": "api",
    "gpus": "api",
    "models": "api",
    "recommend": "recommending",
    "solve": "solving",
    "sweep": "sweeping",
    "trace": "tracing",
    "verdicts": "api",
    "verify": "verifying",
}


def __getattr__(name: str) -> Any:
    """A public name, loaded from its module (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"planner.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
