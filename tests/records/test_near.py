"""Which record says most about a run."""

from __future__ import annotations

from datetime import timedelta

import pytest

from planner import stack
from planner.architecture import build_spec
from planner.device import Device
from planner.recipe import make_recipe
from planner.records import nearest
from planner.units import GIB
from tests.records.sample import A100, CONFIG, NOON, sample

SPEC = build_spec(CONFIG, id="x")


def run(**knobs):
    """A resolved recipe."""
    return stack.resolve(make_recipe(**knobs), stack.LATEST, SPEC.dtype)


def test_the_nearest_by_the_ratio_of_tokens_is_taken():
    """For 1024 tokens, 2048 is nearer than 256, and 3 x 512 is nearer than 2048."""
    records = [sample(seq_len=256), sample(seq_len=2048), sample(batch_size=3, seq_len=512)]
    found = nearest(records, A100, SPEC, run(seq_len=1024))

    assert (found.record.tokens, found.num_records) == (1536, 3)


def test_of_equal_tokens_the_nearest_in_parameters_then_the_newest():
    """A model of another size counts only after tokens; of two alike, the later."""
    large = {**CONFIG, "hidden_size": 128}
    early, late = sample(), sample(now=NOON + timedelta(days=1))
    found = nearest([sample(config=large), late, early], A100, SPEC, run())

    assert found.record == late


@pytest.mark.parametrize(
    "record",
    [
        sample(device=None),
        sample(device=Device("NVIDIA A100-SXM4-40GB", 40 * GIB, (8, 0))),
        sample(device=Device(A100.name, 80 * GIB, (9, 0))),
        sample(config={**CONFIG, "model_type": "mistral"}),
        sample(method="lora"),
        sample(quantization="fp4"),
    ],
)
def test_what_is_not_near_is_not_taken(record):
    """Another card, family, method or quantisation says nothing."""
    assert nearest([record], A100, SPEC, run()) is None


def test_no_records_no_answer():
    """Nothing to say."""
    assert nearest([], A100, SPEC, run()) is None
