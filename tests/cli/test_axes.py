"""Options as axes."""

from __future__ import annotations

import pytest

from planner.cli import options
from planner.cli.axes import read

KNOBS = {knob.name: knob for knob in options.KNOBS}


@pytest.mark.parametrize(
    ("name", "typed", "values"),
    [
        ("batch_size", ["4"], 4),
        ("batch_size", ["1:4"], range(1, 4)),
        ("seq_len", ["512,1024", "2048:4097:1024"], [512, 1024, 2048, 3072, 4096]),
        ("optim", ["adamw_torch, sgd", "adafactor"], ["adamw_torch", "sgd", "adafactor"]),
        ("dropout", ["0,0.05"], [0.0, 0.05]),
        ("targets", ["q_proj,v_proj"], ("q_proj", "v_proj")),
        ("targets", ["q_proj,v_proj", "all-linear"], [("q_proj", "v_proj"), "all-linear"]),
        ("rank_pattern", ["q_proj=4,v_proj=8"], {"q_proj": 4, "v_proj": 8}),
        ("gradient_checkpointing", [True], True),
        ("gradient_checkpointing", [True, False], [True, False]),
    ],
)
def test_what_is_typed_is_one_value_or_several(name, typed, values):
    """Commas and repetitions make axes; where commas belong to a value, only repetitions do."""
    assert read(KNOBS[name], typed) == values
