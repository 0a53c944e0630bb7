"""Outcomes by bounds against the allocator itself."""

from __future__ import annotations

import random

import numpy as np
import pytest

from planner import api, verdict
from planner.device import Device
from planner.errors import QplanError
from planner.job import Job
from planner.own_values import OwnValues
from planner.recipe import make_recipe
from planner.sweeping.deciding import OUTCOMES, UNDECIDED, Judge, bounded, expected, judge
from planner.sweeping.grid import Grid, make_axes
from planner.sweeping.parts import Points

STACK = api.find_stack("latest")
MODELS = [summary.id for summary in api.models()]
SIZES = ("14m", "31m", "70m", "160m", "125m", "135m", "270m", "0.5b", "0.6b")
SMALL = [model for model in MODELS if any(size in model.lower() for size in SIZES)]


def random_run(draw: random.Random, models: list[str]):
    """A model and knobs that a user might sweep over."""
    knobs = {
        "method": draw.choice(("qlora", "qlora", "lora", "full")),
        "batch_size": draw.choice((1, 2, 3, 4, 8, 16)),
        "seq_len": int(2 ** draw.uniform(6, 13)),
        "rank": draw.choice((4, 16, 64, 256)),
        "attn": draw.choice(("sdpa", "sdpa", "eager")),
        "gradient_checkpointing": draw.random() < 0.7,
        "dropout": draw.choice((0.0, 0.05)),
        "loss": draw.choice((None, "full")),
        "grad_accum": draw.choice((1, 1, 4)),
        "optim": draw.choice((None, "adamw_torch", "adafactor", "sgd")),
        "entry_point": draw.choice(("trl", "trainer", "loop")),
    }
    return draw.choice(models), knobs


def cards(draw: random.Random, allocated: int) -> list[Device]:
    """Cards around both bounds, and one between: where a bound that is wrong would be caught."""
    sizes = [int(allocated * factor) + (draw.choice((1, 2)) << 29) for factor in (0.5, 0.7, 0.78, 1.0, 1.9, 2.1, 2.4, 3.0)]
    return [Device("card", size, draw.choice(((7, 5), (8, 0), (8, 9), (9, 0)))) for size in sizes]


def check_bounds(seed: int, models: list[str]) -> int:
    """How many outcomes one random run has decided by bounds; each is compared with the replay's."""
    draw = random.Random(seed)  # noqa: S311 - samples, not secrets
    model, knobs = random_run(draw, models)
    try:
        job = Job(api.find_spec(model), make_recipe(**knobs), STACK)
        allocated = job.analysis(None).ledger.high[1]
    except QplanError:
        return 0
    decided = 0
    for card in cards(draw, allocated):
        peak = job.analysis(card).ledger.high[1]
        code = int(bounded(np.array([peak]), card)[0])
        if code != UNDECIDED:
            decided += 1
            assert OUTCOMES[code] == job.verdict(card, explains=False).outcome, (model, knobs, card)
    return decided


def test_bounds_never_differ_from_the_replay():
    """On random runs of small models and cards around the bounds, what is decided without a replay is what the replay says."""
    assert sum(check_bounds(seed, SMALL) for seed in range(25)) > 50


@pytest.mark.slow
def test_bounds_never_differ_from_the_replay_of_any_model():
    """The same for all bundled models."""
    assert sum(check_bounds(seed, MODELS) for seed in range(1000, 1300)) > 500


def test_an_outlook_by_column_is_the_outlook():
    """Without a replay, the outcomes are those of `planner.verdict.outlook`, point by point."""
    draw = random.Random(5)  # noqa: S311 - samples, not secrets
    sizes = [int(2 ** draw.uniform(20, 38)) for _ in range(300)]
    own = OwnValues(context_bytes=400 << 20, workspace_bytes=None, reserve_per_mille=90, measured="by hand")
    measured = Device("measured", 24 << 30, (8, 6), own=own)
    for card in (api.gpus()[0], Device("card", 24 << 30, (8, 6), used_bytes=3 << 30), Device("small", 1 << 29, (7, 5)), measured):
        found = expected(np.array(sizes), card)

        assert [OUTCOMES[code] for code in found] == [verdict.outlook(size, card, "forward", "analytic").outcome for size in sizes]


def tiny_grid(**knobs) -> Grid:
    """One small model on two cards."""
    axes, fixed = make_axes(knobs)
    spec = api.find_spec("EleutherAI/pythia-14m")
    return Grid((spec,), (Device("small", 2 << 30, (8, 0)), Device("large", 80 << 30, (8, 0))), axes, fixed, STACK)


def test_only_what_is_open_is_simulated(monkeypatch):
    """`auto` replays rows between the bounds, `all` every row, `none` no row; what is replayed is the single estimate's."""
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    grid = tiny_grid(batch_size=[1, 8, 64], seq_len=512)
    numbers = np.arange(3)
    peaks = np.array([Job(grid.models[0], grid.recipe(i), STACK).analysis(grid.gpus[0]).ledger.high[1] for i in range(3)])
    auto, every, none = (Judge(grid, how).verdicts(0, 0, numbers, peaks) for how in ("auto", "all", "none"))
    estimates = [api.estimate("EleutherAI/pythia-14m", gpu=grid.gpus[0], stack=STACK, **grid.knobs(i)) for i in range(3)]

    assert [OUTCOMES[code] for code in auto.outcome] == [OUTCOMES[code] for code in every.outcome] == [e.verdict.outcome for e in estimates]
    assert auto.simulated.tolist() == (bounded(peaks, grid.gpus[0]) == UNDECIDED).tolist()
    assert every.simulated.all() and not none.simulated.any()
    assert every.reserved.tolist() == [e.peak.reserved_bytes for e in estimates]
    assert every.process.tolist() == [e.verdict.required_bytes for e in estimates]
    assert every.headroom.tolist() == [e.verdict.headroom_bytes for e in estimates]


def test_a_replay_serves_the_cards_that_come_later(monkeypatch):
    """Cards share what they can: a point is planned once for both, and what is remembered is not planned again."""
    grid = tiny_grid(batch_size=[1, 2], seq_len=64)
    made = []
    monkeypatch.setattr("planner.sweeping.deciding.Job", lambda *inputs: made.append(1) or Job(*inputs))
    peaks = np.array([40 << 20, 40 << 20])
    first = Judge(grid, "all")
    for gpu in (0, 1):
        first.verdicts(0, gpu, np.arange(2), peaks)
    again = Judge(grid, "all", Points())
    again.points.known.update(first.points.known)
    again.verdicts(0, 1, np.arange(2), peaks)

    assert len(made) == 2


def test_allocator_settings_switch_the_bounds_off(monkeypatch):
    """The bounds are of PyTorch's own settings: with others, every row is replayed."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    grid = tiny_grid(batch_size=[1], seq_len=64)

    assert Judge(grid, "auto").verdicts(0, 1, np.arange(1), np.array([40 << 20])).simulated.all()


def test_without_a_card_there_is_no_outcome():
    """What is reserved where there is room is known all the same."""
    job = Job(api.find_spec("EleutherAI/pythia-14m"), make_recipe(), STACK)
    found = judge(job, None)

    assert found.outcome == UNDECIDED
    assert found.reserved_bytes == job.simulations(None)[0].endless.reserved_bytes
