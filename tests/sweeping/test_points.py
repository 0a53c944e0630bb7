"""Tables of the closed form."""

from __future__ import annotations

import numpy as np

from planner import api
from planner.sweeping.grid import Axis, Grid, Unit, make_axes
from planner.sweeping.points import Analytic, axis_column

STACK = api.find_stack("latest")


def grid(**knobs) -> Grid:
    """One small model on two cards."""
    axes, fixed = make_axes(knobs)
    return Grid((api.find_spec("EleutherAI/pythia-70m"),), (api.gpus()[0], api.gpus()[-1]), axes, fixed, STACK)


def test_every_row_is_an_estimate():
    """Whatever the order of the axes, each row has the knobs, peak, phase and refusal of one estimate."""
    attentions = ["sdpa", "eager", "flash_attention_2"]
    found = grid(rank=[4, 16], attn=attentions, seq_len=[64, 700], dora=[False, True], batch_size=range(1, 4))
    rows = list(Analytic(found, "none").table([Unit(0, 0, 0, 30), Unit(0, 0, 30, found.num_recipes)]).rows())
    for number, row in enumerate(rows):
        point = found.knobs(number)
        report = api.estimate("EleutherAI/pythia-70m", gpu=found.gpus[0], stack=STACK, **point)

        assert {name: row[name] for name in point} == point
        assert (row["allocated_bytes"], row["phase"], row["error"]) == (report.peak.allocated_bytes, report.peak.phase, None)


def test_refused_rows_say_why_and_the_others_do_not():
    """Where the knobs contradict each other, a row has the sentence and no sizes; its neighbours are untouched."""
    found = grid(method=["qlora", "full"], quantization=["nf4", "none"], batch_size=[1, 2])
    rows = list(Analytic(found, "none").table([Unit(0, 0, 0, 8)]).rows())
    refused = [row["error"] is not None for row in rows]

    assert refused == [False, False, True, True, True, True, False, False]
    assert rows[2]["error"] == "method is `qlora` but quantization is `none`; qlora trains over a quantised base"
    assert {rows[2][name] for name in ("allocated_bytes", "phase", "outcome", "headroom_bytes", "reserved_bytes")} == {None}


def test_cards_of_one_capability_share_their_peaks():
    """The second card's table is made of what the first one's was."""
    found = Grid(grid().models, (api.gpus()[0],) * 2, grid(batch_size=[1, 2]).axes, {}, STACK)
    analytic = Analytic(found, "none")

    assert analytic.found(Unit(0, 0, 0, 2)) is analytic.found(Unit(0, 1, 0, 2))


def test_columns_of_knobs():
    """Whole numbers, numbers, switches and texts each have their kind; what is not there is a hole."""
    every = np.array([0, 1, 2])
    columns = {
        "whole": axis_column(Axis("grad_accum", [1, 2, None]), every),
        "range": axis_column(Axis("batch_size", range(5, 8)), every),
        "number": axis_column(Axis("dropout", [0, 0.5, 0.1]), every),
        "switch": axis_column(Axis("padding", [True, None, False]), every),
        "names": axis_column(Axis("targets", ["all-linear", ("q_proj", "v_proj"), None]), every),
        "ranks": axis_column(Axis("rank_pattern", [{"q": 4, "v": 8}, {}, {"q": 4, "v": 8}]), every),
    }

    assert {name: column.numpy().tolist() for name, column in columns.items()} == {
        "whole": [1, 2, None],
        "range": [5, 6, 7],
        "number": [0.0, 0.5, 0.1],
        "switch": [True, None, False],
        "names": ["all-linear", "q_proj,v_proj", None],
        "ranks": ["q=4,v=8", "", "q=4,v=8"],
    }
