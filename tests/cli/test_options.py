"""From what is typed to the knobs of a recipe."""

from __future__ import annotations

import pytest

from planner.cli import options
from planner.recipe import KNOBS


def test_every_knob_is_an_option():
    """The recipe's fields and the command line's options are the same, in the same names."""
    assert sorted(knob.name for knob in options.KNOBS) == sorted(KNOBS)


@pytest.mark.parametrize(
    ("typed", "targets"),
    [
        ("all-linear", "all-linear"),
        ("q_proj", ("q_proj",)),
        ("q_proj, v_proj,", ("q_proj", "v_proj")),
        (r".*\.layers\.[01]\..*_proj", r".*\.layers\.[01]\..*_proj"),
        ("", ()),
    ],
)
def test_targets_are_names_or_one_expression(typed, targets):
    """As `LoraConfig.target_modules`: a list of names, or a text that is a regular expression."""
    assert options.module_names(typed) == targets


def test_what_is_no_number_is_left_to_the_recipe():
    """The recipe's own sentence tells what it must be."""
    assert [options.whole_number(text) for text in ("8", "-1", "8.5", "x")] == [8, -1, "8.5", "x"]
    assert [options.number(text) for text in ("0.1", "1e-3", "x")] == [0.1, 0.001, "x"]


def test_ranks_of_modules_are_pairs():
    """`NAME=RANK,...`; an expression may hold an equals sign."""
    assert options.ranks("q_proj=8, v_proj=32") == {"q_proj": 8, "v_proj": 32}
    assert options.ranks("(?=.*mlp).*=4") == {"(?=.*mlp).*": 4}
    assert options.ranks("q_proj=x") == {"q_proj": "x"}
