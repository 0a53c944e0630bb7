"""Charts: what they can be written to, and what notebooks are given."""

from __future__ import annotations

import pytest

from planner.errors import InvalidOutputError, MissingExtraError
from planner.render import chart
from planner.render.chart import Chart, finish, style

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")


def static() -> Chart:
    """A line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 2], [3, 4])
    return Chart(figure, is_interactive=False)


def page() -> Chart:
    """A bar."""
    from plotly import graph_objects

    return Chart(graph_objects.Figure(graph_objects.Bar(x=["a"], y=[1])), is_interactive=True)


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")])
def test_a_picture_is_the_same_file_every_time(tmp_path, name, begins):
    """PNG or SVG by the name, without a date or a version, so that two runs are equal to the byte."""
    first, second = (static().save(tmp_path / f"{number}{name}").read_bytes() for number in (1, 2))

    assert first.startswith(begins)
    assert first == second
    assert b"Matplotlib version" not in first


def test_an_interactive_page_needs_no_network(tmp_path):
    """The library stands in the page itself: no script is loaded from anywhere."""
    text = page().save(tmp_path / "a.html").read_text(encoding="utf-8")

    assert "<html>" in text
    assert "<script src=" not in text
    assert len(text) > 1_000_000


@pytest.mark.parametrize(("made", "name"), [(static, "a.html"), (page, "a.png")])
def test_a_chart_is_what_it_is(tmp_path, made, name):
    """A static picture is no page, and a page no picture."""
    with pytest.raises(InvalidOutputError, match="does not end in"):
        made().save(tmp_path / name)


def test_notebooks_are_given_a_picture_or_plotlys_own():
    """The protocol of IPython: PNG for static charts, and what plotly shows of its figures for the others."""
    assert static()._repr_mimebundle_()["image/png"].startswith(b"\x89PNG")
    assert any("plotly" in kind or kind == "text/html" for kind in page()._repr_mimebundle_())


def test_the_files_name_decides(tmp_path):
    """A page is interactive and a picture is not, whatever is asked for without a file."""
    assert style(tmp_path / "a.html", interactive=False)
    assert not style(tmp_path / "a.svg", interactive=False)
    assert style(None, interactive=True)
    with pytest.raises(InvalidOutputError, match="static picture, but interactive"):
        style(tmp_path / "a.png", interactive=True)


@pytest.mark.parametrize(("interactive", "library"), [(False, "matplotlib"), (True, "plotly")])
def test_without_the_library_the_way_out_is_told(monkeypatch, interactive, library):
    """Before any work: which one is missing, and the exact command."""
    monkeypatch.setattr(chart, "find_spec", lambda name: None)

    with pytest.raises(MissingExtraError, match=library) as caught:
        style(None, interactive=interactive)

    assert 'pip install "qplan[plot]"' in caught.value.hint


def test_a_finished_chart_is_written_where_it_should_be(tmp_path):
    """With a path it is a file too; without one, nothing is written."""
    finish(static().figure, tmp_path / "a.png", interactive=False)
    finish(static().figure, None, interactive=False)

    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
