"""A chart that a notebook shows and a file keeps: a static picture (matplotlib) or an interactive page (plotly)."""

from __future__ import annotations

import io
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from planner.errors import InvalidOutputError, MissingExtraError
from planner.files import output_path, write_whole
from planner.value import Value

_LIBRARY = {False: "matplotlib", True: "plotly"}
_STATIC, _INTERACTIVE = (".png", ".svg"), (".html",)
_DPI = 110


class Chart(Value, eq=False):
    """
    A chart.

    Attributes:
        figure: matplotlib's or plotly's, to be changed at will.
        is_interactive: Whether it is plotly's.
    """

    figure: Any
    is_interactive: bool

    def save(self, path: str | os.PathLike[str]) -> Path:
        """
        Write it to a file.

        Args:
            path: It ends in .png or .svg; where it is interactive, in .html: a page that needs no network.

        Returns:
            The file.

        Raises:
            InvalidOutputError: The file cannot be written.
        """
        target = output_path(path, _INTERACTIVE if self.is_interactive else _STATIC)
        suffix = Path(path).suffix.lower()
        content = self._page() if self.is_interactive else self._picture(suffix.lstrip("."))
        write_whole(target, lambda file: file.write(content))
        return target

    def _picture(self, kind: str) -> bytes:
        import matplotlib as mpl

        named: dict[str, Any] = {"Software": "qplan"} if kind == "png" else {"Creator": "qplan", "Date": None}
        out = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": "qplan"}):  # the same chart is the same file
            self.figure.savefig(out, format=kind, dpi=_DPI, metadata=named)
        return out.getvalue()

    def _page(self) -> bytes:
        page: str = self.figure.to_html(include_plotlyjs=True, full_html=True, div_id="qplan")
        return page.encode()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        if self.is_interactive:
            bundle: dict[str, Any] = self.figure._repr_mimebundle_(include, exclude)  # by the notebook that plotly sees
            return bundle or {"text/html": self.figure.to_html(include_plotlyjs=True, full_html=False)}
        return {"image/png": self._picture("png"), "text/plain": "<qplan chart>"}


def style(path: str | os.PathLike[str] | None, *, interactive: bool) -> bool:
    """
    Whether the chart is to be interactive, before any work is done: a file's name decides where there is one.

    Args:
        path: Where it will be written too.
        interactive: What was asked for.

    Raises:
        InvalidOutputError: The file cannot be written, or its end contradicts `interactive`.
        MissingExtraError: The library that draws it is not installed.
    """
    if path is not None:
        output_path(path, (*_STATIC, *_INTERACTIVE))
        is_page = Path(path).suffix.lower() in _INTERACTIVE
        if interactive and not is_page:
            raise InvalidOutputError(
                f"`{os.fspath(path)}` is a static picture, but interactive is asked for", hint="name a .html file, or interactive=False"
            )
        interactive = is_page
    library = _LIBRARY[interactive]
    if find_spec(library) is None:
        raise MissingExtraError(f"the chart needs {library}, which is not installed", hint='pip install "qplan[plot]"')
    return interactive


def finish(figure: Any, path: str | os.PathLike[str] | None, *, interactive: bool) -> Chart:
    """The chart, written to the path if there is one."""
    chart = Chart(figure, interactive)
    if path is not None:
        chart.save(path)
    return chart
