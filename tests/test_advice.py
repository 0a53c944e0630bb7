"""What to change, and the command to type."""

from __future__ import annotations

import shlex

import pytest

from planner import advice, api, catalog, job
from planner.recipe import Recipe, make_recipe
from tests import fakes

LLAMA_7B, LLAMA_70B = "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-70b-hf"


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch):
    monkeypatch.setattr("planner.engines.analytic.analyse", fakes.analyse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def offered(model: str = LLAMA_7B, **knobs) -> list[dict]:
    """The knobs of every suggestion."""
    return [suggestion.knobs for suggestion in api.estimate(model, stack="latest", **knobs).suggestions]


def test_only_what_saves_noticeably_is_suggested():
    """Each suggestion saves one percent of what is allocated or more."""
    report = api.estimate(LLAMA_70B, seq_len=2048, batch_size=4)

    assert report.suggestions
    assert all(100 * s.saved_bytes >= report.peak.allocated_bytes for s in report.suggestions)
    assert all(s.saved_bytes == report.peak.allocated_bytes - s.allocated_bytes for s in report.suggestions)


def test_what_is_already_so_is_not_suggested():
    """The canonical recipe is paged, checkpointed and chunked already."""
    found = offered(rank=64)

    assert {"gradient_checkpointing": True} not in found
    assert not any("optim" in knobs or "loss" in knobs for knobs in found)


def test_a_batch_is_halved_and_accumulated():
    """As many samples a step, in twice the passes."""
    assert {"batch_size": 4, "grad_accum": 2} in offered(batch_size=8, seq_len=4096)


def test_full_fine_tuning_is_told_of_adapters():
    """Adapters and a quantised base are real re-estimates of a full run."""
    found = offered(method="full")

    assert {"method": "lora"} in found
    assert {"method": "qlora"} in found


def test_targets_are_those_the_family_has():
    """Families that name the attention otherwise get their own names, or none."""
    stack = api.find_stack("latest")

    def changes(model):
        spec = api.find_spec(model, None)
        return advice.changes(spec, job.Job(spec, Recipe(), stack).resolved)

    targets = {
        model: [c.knobs["targets"] for c in changes(model) if "targets" in c.knobs]
        for model in (LLAMA_7B, "bigscience/bloom-560m")
    }

    assert targets == {LLAMA_7B: [("q_proj", "v_proj")], "bigscience/bloom-560m": [("query_key_value",)]}


def test_a_refused_change_is_left_out():
    """TRL refuses Liger's loss over its own head: it is not offered."""
    assert {"loss": "liger"} not in offered(loss="full", seq_len=8192, batch_size=4)
    assert {"loss": "liger"} in offered(loss="full", seq_len=8192, batch_size=4, entry_point="trainer")


def test_the_next_command_makes_it_fit():
    """A run that does not fit is answered with a command whose run does."""
    report = api.estimate(LLAMA_7B, gpu="t4", method="lora", seq_len=8192)
    command = shlex.split(advice.next_command(report))
    knobs, _ = report.details.make_it_fit()
    changed = api.estimate(LLAMA_7B, gpu="t4", **{"method": "lora", "seq_len": 8192, **knobs})

    assert report.verdict.outcome == "does_not_fit"
    assert command[:3] == ["qplan", "estimate", LLAMA_7B]
    assert changed.verdict.outcome == "fits"
    assert set(shlex.split(advice.flags(knobs))) <= set(command)


def test_what_no_change_saves_is_sent_to_the_other_cards():
    """70 billion parameters on a T4: the cards that take it are the next thing to look at."""
    command = advice.next_command(api.estimate(LLAMA_70B, gpu="t4", rank=8))

    assert command == f"qplan gpus {LLAMA_70B} --rank 8"


def test_a_fit_is_followed_by_its_explanation():
    """On a named card that fits, the rows behind the peak come next."""
    assert advice.next_command(api.estimate(LLAMA_7B, gpu="a6000")) == f"qplan estimate {LLAMA_7B} --gpu a6000 --explain"


def test_without_a_card_the_smallest_that_fits_is_next():
    """The command names the smallest common card that takes the run with room to spare."""
    report = api.estimate(LLAMA_70B)
    smallest = next(card for card in report.outcomes if card.outcome == "fits")
    words = shlex.split(advice.next_command(report))

    assert catalog.find_device(words[-1]).name == smallest.name


def test_short_names_find_their_cards():
    """The name that is printed can be typed, with blanks or with dashes."""
    for device in catalog.list_devices():
        assert catalog.find_device(advice.short_name(device.name)).name == device.name
        assert catalog.find_device(advice.typed_name(device.name)).name == device.name


def test_flags_can_be_pasted():
    """Knobs come out as options of the command line, quoted where a shell needs it."""
    knobs = {"kbit_prepare": False, "dora": True, "rank_pattern": {"q_proj": 8}, "targets": r".*\.(q|v)_proj", "optim": None}

    assert advice.flags(knobs) == r"--no-kbit-prepare --dora --rank-pattern q_proj=8 --targets '.*\.(q|v)_proj'"


def test_a_changed_method_frees_the_knobs_of_the_old_one():
    """From full to qlora, `quantization none` does not contradict."""
    asked = make_recipe(method="full", quantization="none", optim="sgd")

    assert advice._with_consequences(asked, {"method": "qlora"}) == {"method": "qlora", "quantization": None, "optim": None}
