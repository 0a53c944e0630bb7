"""Colours: told apart by people who see them differently."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest

from planner.ledger import Category
from planner.render.palette import COLOURS, OUTCOMES

# Machado, Oliveira, Fernandes: A Physiologically-based Model for Simulation of Color Vision Deficiency, 2009; severity 1.0, linear RGB.
SEEN_BY = {
    "everybody": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopes": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopes": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}


def lab(colour: str, seen_by: str) -> tuple[float, float, float]:
    """CIE L*a*b* (D65) of an sRGB colour as somebody sees it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))]
    r, g, b = (min(max(sum(m * c for m, c in zip(row, linear, strict=True)), 0), 1) for row in SEEN_BY[seen_by])
    x, y, z = 0.4124 * r + 0.3576 * g + 0.1805 * b, 0.2126 * r + 0.7152 * g + 0.0722 * b, 0.0193 * r + 0.1192 * g + 0.9505 * b
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x / 0.9505, y, z / 1.089))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def difference(a: str, b: str, seen_by: str) -> float:
    """CIE76: below 2.3 two colours look the same; 20 and more are far apart."""
    return sum((p - q) ** 2 for p, q in zip(lab(a, seen_by), lab(b, seen_by), strict=True)) ** 0.5


@pytest.mark.parametrize("seen_by", SEEN_BY)
def test_verdicts_are_told_apart(seen_by):
    """Any two verdicts are far apart for everybody."""
    assert min(difference(a, b, seen_by) for a, b in combinations(OUTCOMES.values(), 2)) > 40


@pytest.mark.parametrize("seen_by", SEEN_BY)
def test_the_parts_that_matter_are_told_apart(seen_by):
    """Neighbours in a stack are never alike."""
    stack = list(COLOURS.values())

    assert min(difference(a, b, seen_by) for a, b in pairwise(stack)) > 15


def test_every_category_has_a_colour():
    """None is drawn in another's."""
    assert set(COLOURS) == set(Category)
    assert len(set(COLOURS.values())) == len(COLOURS)
