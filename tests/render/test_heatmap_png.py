"""Heat maps through matplotlib: what is drawn is what the grid says."""

from __future__ import annotations

import numpy as np
import pytest

from planner.render.heatmap import frontier, grid
from tests.render import grids

pytest.importorskip("matplotlib")


def drawn(color="headroom_bytes", where=None, **axes):
    """The grid and the figure."""
    from planner.render import heatmap_png

    shown = grid(grids.columns(**axes), "batch_size", "seq_len", color, where or {})
    return shown, heatmap_png.figure(shown)


def test_each_panel_has_its_picture_and_its_line():
    """The image holds the panel's values, the lowest row at the bottom; the line has every edge of the frontier."""
    shown, figure = drawn()

    for axes, panel in zip(figure.axes, shown.panels, strict=False):
        np.testing.assert_array_equal(axes.images[0].get_array(), panel.values)
        assert axes.images[0].origin == "lower"
        assert axes.get_title(loc="left") == panel.title
        assert len(axes.collections[0].get_segments()) == len(list(frontier(panel.outcomes)))


def test_small_grids_have_their_numbers():
    """Each cell of a small grid says its value; tight ones are marked."""
    shown, figure = drawn(where={"gpu": "Tesla T4"})
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}

    assert len(texts) == shown.panels[0].values.size
    assert texts[0, 0] == "7.8"  # 15 - 6 - 1 - 16/64 = 7.75
    assert {text.endswith("·") for (x, y), text in texts.items() if shown.panels[0].outcomes[y, x] == 1} == {True}


def test_large_grids_have_some_ticks_and_no_numbers():
    """Of sixty values some are named, the first among them, and cells too small for text have none."""
    _, figure = drawn(where={"gpu": "Tesla T4"}, batches=range(1, 61), lengths=range(512, 4097, 512))
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]

    assert labels[0] == "1"
    assert len(labels) <= 10
    assert len(axes.texts) == 0


def test_verdicts_that_occur_are_in_the_legend():
    """By name, beside the line; none that is not there."""
    _, figure = drawn("outcome", where={"gpu": "NVIDIA L40S"}, batches=(1, 2), lengths=(512, 1024))

    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fits"]


def test_dark_cells_have_light_text():
    """The ink of each cell is the one of the two that can be read better (WCAG's contrast), and by 3.8 to 1 at least."""
    shown, figure = drawn(where={"gpu": "NVIDIA L40S"}, batches=(1, 2, 4, 8, 12, 16, 24, 32))
    from matplotlib.colors import to_rgb

    axes = figure.axes[0]
    image = axes.images[0]
    for text in axes.texts:
        x, y = text.get_position()
        ground = image.cmap(image.norm(shown.panels[0].values[y, x]))[:3]
        chosen, other = (contrast(ground, to_rgb(ink)) for ink in (text.get_color(), {"white": "#222222"}.get(text.get_color(), "white")))
        assert chosen >= 3.8
        assert chosen >= other - 0.3


def contrast(a, b):
    """WCAG 2.1's contrast of two colours."""
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour):
    """Relative luminance of an sRGB colour (WCAG 2.1)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
