"""
How values show themselves in a notebook, without knowing who draws them.

What draws stands above what is drawn, so none of the lower rooms imports it. A value that is looked at hands itself to
`planner.render.notebook`, which is found by name and loaded then, as `planner/__init__.py` finds the home of a public name.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Displayed:
    """What IPython, Jupyter and Colab show as a small page of its own, and as text where there is no page."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # IPython takes the first class, from the value's own upwards, that has either this or a `__repr__`, as dataclasses do.
        cls._repr_pretty_ = Displayed._repr_pretty_  # type: ignore[method-assign]

    def _repr_html_(self) -> str:
        return str(drawing("notebook", "html")(self))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(drawing("notebook", "text")(self))


def drawing(module: str, function: str) -> Any:
    """
    What draws something: a function of a module of `planner.render`.

    Args:
        module: `notebook`.
        function: `html`.
    """
    return getattr(import_module(f"planner.render.{module}"), function)
