"""Which layers repeat, against a search through every stretch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.repetition import Repetition, numbered, repetition


def saved_by(keys: str, start: int, period: int, count: int) -> int:
    """Layers that need not be run of a stretch; none if it does not repeat."""
    stretch = keys[start : start + period * count]
    repeats = len(stretch) == period * count and stretch == stretch[:period] * count
    return (count - 3) * period if repeats and count > 3 else 0


@given(st.text("ab", max_size=24))
def test_no_other_stretch_saves_more(keys):
    """Brute force over all starts, periods and counts."""
    found = repetition(keys)
    sizes = range(1, len(keys) + 1)
    best = max((saved_by(keys, s, p, c) for s in range(len(keys)) for p in sizes for c in sizes), default=0)

    assert saved_by(keys, *found) == best
    assert found.count >= 4 or found == Repetition(0, 1, 0)


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ("a" * 80, (0, 1, 80)),
        ("sssssf" * 4 + "ss", (0, 6, 4)),
        ("ddd" + "m" * 57, (3, 1, 57)),
        ("aaa", (0, 1, 0)),
        ("", (0, 1, 0)),
    ],
)
def test_models_that_there_are(keys, found):
    """Llama, Gemma-3, DeepSeek-V3, and one that is too small."""
    assert tuple(repetition(keys)) == found


@pytest.mark.parametrize(
    ("second", "last", "steps", "fourth"),
    [
        ("model.layers.1.mlp", "model.layers.9.mlp", 8, "model.layers.4.mlp"),
        ("layers.7.experts.0", "layers.31.experts.0", 4, "layers.25.experts.0"),
        ("self_attn", "self_attn", 8, "self_attn"),
        ("a.1.2", "a.3.4", 1, "a.1.2"),
    ],
)
def test_paths_of_other_instances(second, last, steps, fourth):
    """The one number that differs counts on; without one the path is everybody's."""
    assert numbered(second, last, steps).of(4) == fourth
