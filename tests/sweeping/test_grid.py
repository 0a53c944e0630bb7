"""The points of a sweep, in order, and what an axis may be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from planner import api
from planner.errors import InvalidRecipeError
from planner.sweeping.grid import Grid, make_axes


def grid(**knobs):
    """A grid of two models and two cards."""
    axes, fixed = make_axes(knobs)
    models = tuple(api.find_spec(name) for name in ("meta-llama/Llama-2-7b-hf", "openai-community/gpt2"))
    return Grid(models, tuple(api.gpus()[:2]), axes, fixed, api.find_stack("latest"))


def test_points_are_the_product_in_order():
    """The first axis changes slowest: the order of nested loops."""
    found = grid(optim=["sgd", "adamw_torch"], batch_size=range(1, 4), seq_len=(64, 128), rank=8)
    loops = itertools.product(("sgd", "adamw_torch"), (1, 2, 3), (64, 128))
    expected = [{"rank": 8, "optim": o, "batch_size": b, "seq_len": s} for o, b, s in loops]

    assert [found.knobs(number) for number in range(found.num_recipes)] == expected
    assert len(found) == 2 * 2 * len(expected)


@pytest.mark.parametrize("size", [1, 5, 7, 100])
def test_units_cover_every_point_once(size):
    """Runs of points, whatever their size, follow each other without a gap."""
    found = grid(batch_size=range(1, 4), seq_len=(64, 128, 256))
    covered = [(u.model, u.gpu, number) for u in found.units(size) for number in range(u.begin, u.end)]

    assert covered == list(itertools.product(range(2), range(2), range(9)))
    assert max(len(unit) for unit in found.units(size)) <= size


def test_what_is_an_axis_and_what_is_one_value():
    """Ranges, lists and arrays vary; texts, tuples of names, mappings and numbers do not."""
    axes, fixed = make_axes(
        {
            "batch_size": np.arange(1, 3),
            "targets": ["all-linear", "q_proj,v_proj"],
            "rank_pattern": {"q_proj": 4},
            "modules_to_save": ["lm_head"],
            "seq_len": (n for n in (8, 16)),
            "attn": "eager",
            "dora": [True, False],
            "loss": None,
        }
    )

    assert [(axis.name, list(axis.values)) for axis in axes] == [
        ("batch_size", [1, 2]),
        ("targets", ["all-linear", "q_proj,v_proj"]),
        ("seq_len", [8, 16]),
        ("dora", [True, False]),
    ]
    assert fixed == {"rank_pattern": {"q_proj": 4}, "modules_to_save": ["lm_head"], "attn": "eager", "loss": None}
    assert make_axes({"targets": ("q_proj", "v_proj")})[0] == ()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"batch_sise": [1]}, "batch_sise is no knob"),
        ({"batch_size": []}, "batch_size is an axis without values"),
        ({"batch_size": range(4)}, "batch_size is 0"),
        ({"seq_len": [512, "long"]}, "seq_len is 'long'"),
        ({"optim": ["sgd", "adam"]}, "optim is 'adam'"),
        ({"rank": 0}, "rank is 0"),
    ],
)
def test_bad_axes_are_refused(knobs, message):
    """A value that a knob cannot have refuses the whole grid, before anything is computed."""
    with pytest.raises(InvalidRecipeError, match=message):
        make_axes(knobs)


def test_what_contradicts_a_default_alone_is_an_axis():
    """A value that is refused with the defaults may be right with the other knobs: that is for its rows to say."""
    axes, _ = make_axes({"quantization": ["none", "nf4"], "method": ["lora", "qlora"]})

    assert [axis.name for axis in axes] == ["quantization", "method"]


def test_fingerprints_tell_grids_apart():
    """Equal grids have equal fingerprints; another value, order, card or way of judging has another."""
    first = grid(batch_size=[1, 2], seq_len=64)
    others = [grid(batch_size=[1, 3], seq_len=64), grid(batch_size=[2, 1], seq_len=64), grid(batch_size=[1, 2], seq_len=65)]

    different = {first.fingerprint(simulate="auto"), first.fingerprint(simulate="all"), *(o.fingerprint(simulate="auto") for o in others)}

    assert first.fingerprint(simulate="auto") == grid(batch_size=[1, 2], seq_len=64).fingerprint(simulate="auto")
    assert len(different) == 5
