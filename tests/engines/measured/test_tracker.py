"""Storages that are followed: births, deaths, categories, and a ceiling."""

from __future__ import annotations

from typing import Any

import pytest

from planner.ledger import Category, Phase

torch = pytest.importorskip("torch")
bitsandbytes = pytest.importorskip("bitsandbytes")
pytest.importorskip("transformers")

from planner.engines.measured.tracker import Full, Tracker, rules  # noqa: E402
from planner.engines.running.accumulation import Accumulation  # noqa: E402


def alive(tracker: Tracker) -> int:
    """Bytes that live, by the history."""
    h = tracker.history
    return sum(h.sizes[e] if e >= 0 else -h.sizes[~e] for e in h.events)


def test_views_are_no_memory_and_deaths_are_seen() -> None:
    """A storage counts once, from the operation that makes it until nobody holds it or a view of it."""
    with Tracker("cpu", {}) as tracker:
        x = torch.ones(100)
        y = x[10:].view(9, 10)
        z = x + 1
        seen = [alive(tracker)]
        del x
        seen.append(alive(tracker))
        del y
        seen.append(alive(tracker))
        del z
        seen.append(alive(tracker))

    assert seen == [800, 800, 400, 0]
    assert tracker.allocated_bytes == 0


def test_categories_are_those_of_the_rule_that_all_share() -> None:
    """An activation in forward, logits where it is as wide as the vocabulary, a temporary behind it, an input where it is said."""
    tracker = Tracker("cpu", {})
    tracker.vocab_size = 32
    with tracker:
        for phase in (Phase.FORWARD, Phase.OPTIMIZER_STEP):
            with tracker.during(phase):
                torch.ones(2, 8), torch.ones(2, 32)
        with tracker.during(Phase.FORWARD), tracker.meaning(Category.INPUT):
            torch.ones(3)

    expected = [Category.ACTIVATION, Category.LOGITS, Category.TEMPORARY, Category.TEMPORARY, Category.INPUT]
    assert tracker.history.categories == expected
    assert [s.phase for s in tracker.history.stretches] == [Phase.FORWARD, Phase.OPTIMIZER_STEP, Phase.FORWARD]


def test_a_ceiling_is_an_error_with_what_is_alive() -> None:
    """The storage that is one too many is not among it."""
    tracker = Tracker("cpu", {}, limit_bytes=1000)
    with tracker, tracker.during(Phase.FORWARD):
        kept = torch.ones(200)
        with pytest.raises(Full) as error:
            torch.ones(51)

    assert (error.value.requested_bytes, error.value.allocated_bytes) == (204, 800)
    assert error.value.phase is Phase.FORWARD
    assert error.value.by_category == {Category.ACTIVATION: 800}
    assert error.value.model_dump()["by_category"] == {"activation": 800}
    assert kept.sum() == 200


def test_kernels_of_bitsandbytes_are_entered() -> None:
    """What quantising allocates beside its result is temporary memory, and the numbers are those of the kernel itself."""
    torch.manual_seed(0)
    weight = torch.randn(64, 64, dtype=torch.bfloat16)
    expected, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
    with Tracker("cpu", rules("cpu")) as tracker:
        found, its = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
        h = tracker.history
        sizes = {index: h.sizes[index] for index in tracker.live.values()}

    assert torch.equal(expected, found)
    assert torch.equal(state.absmax, its.absmax)
    assert {2048, 256} <= set(sizes.values())
    assert max(h.sizes) == 4 * 64 * 64  # the weight in fp32
    assert {h.categories[i] for i, size in enumerate(h.sizes) if size == 4 * 64 * 64} == {Category.TEMPORARY}


def test_sums_of_gradients_are_made_in_place_as_without_a_mode() -> None:
    """Two users of one tensor: the engine adds into the buffer of the first, and the gradient is right."""

    def backward() -> Any:
        x = torch.linspace(0, 1, 1000, requires_grad=True)
        h = x * 2
        (h.exp().sum() + h.sin().sum()).backward()
        return x.grad

    expected = backward()
    with Tracker("cpu", {}) as tracker:
        Accumulation(tracker)
        tracker.forget()
        found = backward()

    assert torch.equal(expected, found)
    sums = [name for name, size in zip(tracker.history.names, tracker.history.sizes, strict=True) if size == 4000 and ".add" in name]
    assert sums == []
