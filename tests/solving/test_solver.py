"""The largest value that fits: against estimates of every value, one by one."""

from __future__ import annotations

from typing import Any

import pytest

from planner import estimate, solve
from planner.device import Device
from planner.errors import InvalidRecipeError, QplanError, UnknownDeviceError
from planner.formulas.runtime import cuda_context
from planner.report import Report
from planner.solving.solution import Frontier, Solution
from planner.solving.solver import learned_positions
from planner.units import MIB
from tests.engines.tiny import GPT2, LLAMA
from tests.solving.test_line import MIXTURE, WINDOWED

LLAMA_8B = "meta-llama/Llama-3.1-8B"
DEEP = {**LLAMA, "num_hidden_layers": 7}


def card(room: int, *, used: int = 0, capability: tuple[int, int] = (8, 0)) -> Device:
    """A card with so many MiB for tensors."""
    return Device("a card", cuda_context(capability).nbytes + room * MIB + used, capability, used_bytes=used)


def planned(model: Any, device: Any, **knobs: Any) -> Report:
    """One estimate."""
    return estimate(model, gpu=device, stack="latest", **knobs)


def runs(model: Any, device: Any, knob: str, values: range, **knobs: Any) -> dict[int, str]:
    """The outcome of every value, as `estimate` says it."""
    found = {}
    for value in values:
        verdict = planned(model, device, **knobs, **{knob: value}).verdict
        assert verdict is not None
        found[value] = verdict.outcome
    return found


# model, MiB for tensors, knob, values, what else: the card ends within the values, with a margin beyond the last that can fit
CASES: dict[str, tuple[Any, int, str, range, dict[str, Any]]] = {
    "a batch": (DEEP, 64, "batch_size", range(1, 14), {"seq_len": 64}),
    "padding from two samples on": (DEEP, 60, "batch_size", range(1, 8), {"seq_len": 256}),
    "a length, token by token": (DEEP, 56, "seq_len", range(100, 150), {"batch_size": 2, "gradient_checkpointing": False}),
    "a window that masks": (WINDOWED, 40, "seq_len", range(100, 165), {"batch_size": 2}),
    "scores that grow with the square": (
        DEEP, 64, "seq_len", range(110, 156), {"attn": "eager", "batch_size": 2, "gradient_checkpointing": False},
    ),
    "a rank with states that turn to 8 bits": (LLAMA, 25, "rank", range(20, 80), {"optim": "adamw_8bit", "seq_len": 32}),
    "accumulation": (LLAMA, 28, "grad_accum", range(1, 6), {"method": "full", "seq_len": 32, "optim": "adamw_torch"}),
    "experts": (MIXTURE, 40, "batch_size", range(1, 14), {"dropout": 0.0, "seq_len": 32, "method": "lora"}),
    "room to spare, too": (DEEP, 400, "batch_size", range(12, 24), {"seq_len": 64, "card": (7, 5)}),
    "a checkpoint on a T4": (LLAMA_8B, 0, "batch_size", range(1, 17), {"card": "t4"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_what_estimates_of_every_value_find(case):
    """The largest that runs, and the largest that fits with room to spare; what is one beyond fails."""
    model, room, knob, values, given = CASES[case]
    knobs = {name: value for name, value in given.items() if name != "card"}
    named = given.get("card", (8, 0))
    device = named if isinstance(named, str) else card(room, capability=named)
    outcomes = runs(model, device, knob, values, **knobs)
    expected = max((value for value, outcome in outcomes.items() if outcome != "does_not_fit"), default=None)
    comfortable = max((value for value, outcome in outcomes.items() if outcome == "fits"), default=None)

    found = solve(model, gpu=device, vary=knob, stack="latest", bounds=(values[0], values[-1]), multiple_of=1, **knobs)

    assert isinstance(found, Solution)
    assert found.value == expected
    assert (found.comfortable and found.comfortable.value) == comfortable
    if expected is not None:
        assert found.verdict == planned(model, device, **knobs, **{knob: expected}).verdict._replace(runs_with_expandable_segments=None)
    if expected not in (None, values[-1]):
        assert found.beyond.value == expected + 1
        assert found.beyond.verdict == planned(model, device, **knobs, **{knob: expected + 1}).verdict


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "gpu", "knob", "step", "values", "knobs"),
    [
        (LLAMA_8B, "t4", "batch_size", 1, range(1, 17), {}),
        (LLAMA_8B, "t4", "seq_len", 64, range(5000, 7400), {}),
        ("Qwen/Qwen3-0.6B", "t4", "rank", 8, range(3200, 4700), {"optim": "adamw_8bit"}),
        ("google/gemma-2-9b", "l4", "batch_size", 1, range(1, 28), {"attn": "eager"}),
        ("meta-llama/Llama-2-70b-hf", "a6000", "seq_len", 64, range(1900, 3700), {}),
    ],
)  # fmt: skip
def test_real_models_are_solved_as_every_estimate_says(model, gpu, knob, step, values, knobs):
    """Whole checkpoints on real cards, at the multiples that are looked at."""
    multiples = range(-(-values[0] // step) * step, values[-1] + 1, step)
    outcomes = runs(model, gpu, knob, multiples, **knobs)

    found = solve(model, gpu=gpu, vary=knob, stack="latest", **knobs)

    assert found.value == max(value for value, outcome in outcomes.items() if outcome != "does_not_fit")
    assert found.comfortable.value == max(value for value, outcome in outcomes.items() if outcome == "fits")


def test_what_runs_is_no_interval():
    """A longer sample can run where a shorter one fails: the answer is the last one that runs, not the one before the first failure."""
    outcomes = runs(LLAMA_8B, "t4", "seq_len", range(3328, 3392 + 1, 64), batch_size=2)

    assert outcomes == {3328: "does_not_fit", 3392: "tight"}
    assert solve(LLAMA_8B, gpu="t4", vary="seq_len", batch_size=2, stack="latest").value == 3392


def test_where_nothing_fits_the_least_need_is_told():
    """No value, the needs of the smallest one, and the command that looks for a card."""
    found = solve(LLAMA_8B, gpu="4GiB", stack="latest")

    assert (found.value, found.headroom_bytes, found.beyond, found.is_found, found.comfortable) == (None, None, None, False, None)
    assert found.least.verdict == planned(LLAMA_8B, "4GiB").verdict
    assert found.elsewhere == f"qplan which {LLAMA_8B} --batch-size 1 --stack latest"


def test_where_everything_fits_the_range_ends_it():
    """All of a range; nothing is beyond it."""
    found = solve(LLAMA, gpu="80GiB", bounds=(1, 4), stack="latest")

    assert (found.value, found.is_everything, found.beyond) == (4, True, None)


def test_a_table_of_positions_ends_the_lengths():
    """A GPT-2 of 512 learned positions takes no more tokens, whatever the card."""
    found = solve(GPT2, gpu="80GiB", vary="seq_len", stack="latest")

    assert (found.value, found.is_everything, found.is_positions) == (512, True, True)


def test_positions_that_are_computed_are_no_end_but_a_warning():
    """Rotary positions go on; the model was made for fewer."""
    found = solve(LLAMA, gpu=card(200), vary="seq_len", stack="latest")

    assert found.value > 512
    assert "512 positions" in found.warnings[0]
    assert solve(LLAMA, gpu=card(200), vary="seq_len", bounds=(1, 512), multiple_of=1, stack="latest").warnings == ()


def test_a_family_that_is_traced_alone_has_no_known_table():
    """What the closed form does not know ends at the knob's range."""
    from planner.api import find_spec

    assert learned_positions(find_spec("meta-llama/Llama-3.2-11B-Vision", None)) is None


def test_less_than_one_step_is_looked_at_value_by_value():
    """Where not even 64 tokens fit, the largest length below."""
    found = solve(DEEP, gpu=card(46), vary="seq_len", batch_size=64, stack="latest")
    outcomes = runs(DEEP, card(46), "seq_len", range(1, 65), batch_size=64)

    assert outcomes[64] == "does_not_fit"
    assert found.value == max(value for value, outcome in outcomes.items() if outcome != "does_not_fit")
    assert found.multiple_of == 1


def test_two_knobs_give_a_frontier():
    """For each batch the length that one knob alone would have."""
    device = card(64)
    found = solve(DEEP, gpu=device, vary=("batch_size", "seq_len"), bounds={"batch_size": (1, 5)}, multiple_of=16, stack="latest")

    assert isinstance(found, Frontier)
    assert found.values == {
        batch: solve(DEEP, gpu=device, vary="seq_len", batch_size=batch, multiple_of=16, stack="latest").value for batch in range(1, 6)
    }
    assert list(found.values.values()) == sorted(found.values.values(), reverse=True)


def test_a_frontier_goes_on_until_nothing_fits():
    """By powers of two, to the last batch for which one token still fits."""
    found = solve(DEEP, gpu=card(48), vary=("batch_size", "seq_len"), stack="latest", multiple_of=1)
    batches = list(found.values)

    assert batches == [1 << power for power in range(len(batches))]
    assert planned(DEEP, card(48), batch_size=2 * batches[-1], seq_len=1).verdict.outcome == "does_not_fit"


def test_a_frontier_without_a_point_tells_the_least_need():
    """On a card that is too small for one token."""
    found = solve(LLAMA_8B, gpu="4GiB", vary=("batch_size", "seq_len"), stack="latest")

    assert (found.values, found.is_found) == ({}, False)
    assert found.least.verdict.outcome == "does_not_fit"


def test_values_can_be_named():
    """More than two values are the values themselves."""
    found = solve(LLAMA_8B, gpu="t4", bounds=(4, 12, 16, 8), stack="latest")

    assert found.value == 12
    assert found.beyond.value == 16


def test_what_others_hold_is_not_free():
    """A card of which another process holds a part gives less."""
    assert solve(DEEP, gpu=card(64, used=64 * MIB), stack="latest").value == solve(DEEP, gpu=card(64), stack="latest").value
    assert solve(DEEP, gpu=card(64), stack="latest").value < solve(DEEP, gpu=card(128), stack="latest").value


def test_progress_is_told_what_is_simulated():
    """Each value that is simulated."""
    told: list[str] = []
    solve(LLAMA_8B, gpu="t4", stack="latest", progress=told.append)

    assert told[-1] == "simulating batch_size 13"


def test_named_values_end_with_the_table_of_positions_too():
    """Lengths that the model cannot take are left out; where all are, it says so."""
    found = solve(GPT2, gpu="80GiB", vary="seq_len", bounds=(100, 300, 512, 600), stack="latest")

    assert (found.value, found.is_positions) == (512, True)
    with pytest.raises(InvalidRecipeError, match="table of 512 positions"):
        solve(GPT2, gpu="80GiB", vary="seq_len", bounds=(513, 900), stack="latest")


def test_a_range_without_a_multiple_is_looked_at_value_by_value():
    """Between 100 and 120 tokens none is a multiple of 64; asked for multiples, there is nothing to look at."""
    found = solve(LLAMA, gpu="80GiB", vary="seq_len", bounds=(100, 120), stack="latest")

    assert (found.value, found.multiple_of) == (120, 1)
    with pytest.raises(InvalidRecipeError, match="multiple_of is 64, of which none"):
        solve(LLAMA, gpu="80GiB", vary="seq_len", bounds=(100, 120), multiple_of=64, stack="latest")


@pytest.mark.slow
def test_a_trace_is_solved_as_traces_of_every_value_say():
    """The installed libraries' own code decides, value by value."""
    pytest.importorskip("trl")
    device = card(64)
    knobs = {"engine": "traced", "seq_len": 64}
    outcomes = {batch: estimate(DEEP, gpu=device, batch_size=batch, **knobs).verdict.fits for batch in (8, 9, 10, 11)}

    assert solve(DEEP, gpu=device, bounds=(8, 11), **knobs).value == max(batch for batch, runs in outcomes.items() if runs)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"vary": "lora_alpha"}, "vary names lora_alpha"),
        ({"vary": ("batch_size", "batch_size")}, "two that differ"),
        ({"vary": ()}, "vary names 0 knobs"),
        ({"vary": "batch_size", "batch_size": 2}, "is to be varied too"),
        ({"vary": "rank", "method": "full"}, "has no adapters"),
        ({"bounds": (0, 4)}, "bounds of batch_size are"),
        ({"bounds": (9, 4)}, "bounds of batch_size are"),
        ({"bounds": {"seq_len": (1, 4)}}, "which is not varied"),
        ({"bounds": 7}, "bounds of batch_size are 7"),
        ({"multiple_of": 0}, "multiple_of is 0"),
        ({"ranks": 3}, "ranks is no knob"),
        ({"engine": "guess"}, "engine is `guess`"),
    ],
)
def test_requests_that_cannot_be_are_refused(given, says):
    """Each says what is wrong."""
    with pytest.raises(QplanError) as error:
        solve(LLAMA, gpu="80GiB", stack="latest", **given)

    assert says in error.value.message
    assert isinstance(error.value, InvalidRecipeError)


def test_without_a_card_there_is_nothing_to_solve(monkeypatch):
    """No card is named and none is here."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UnknownDeviceError, match="no card is named"):
        solve(LLAMA, stack="latest")
