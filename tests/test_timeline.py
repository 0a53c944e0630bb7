"""Memory over time: the numbers."""

from __future__ import annotations

from collections import Counter

import pytest

from planner.allocator import AllocatorSettings, CachingAllocator
from planner.history import History
from planner.ledger import Category, Phase, Span
from planner.snapshot import snapshot
from planner.timeline import Timeline, phases, record, steady_step
from planner.units import GIB, KIB, MIB
from tests import histories

C = Category


def by_hand(timeline: Timeline, settings: AllocatorSettings | None = None) -> list[tuple[dict[Category, int], int]]:
    """(bytes of each category, reserved bytes) after each event that is shown, by asking the allocator's live blocks each time."""
    history, found = timeline.history, []
    allocator, live = CachingAllocator(None, settings), {}
    for position, event in enumerate(history.events[: timeline.end]):
        if position in history.flushes:
            allocator.empty_cache()
        if event >= 0:
            live[event] = allocator.allocate(history.sizes[event])
        else:
            allocator.free(live.pop(~event))
        if position >= timeline.begin:
            sums = Counter()
            for storage, block in live.items():
                sums[history.categories[storage]] += block.size
            found.append((dict(sums), allocator.reserved_bytes))
    return found


def test_the_small_history_by_hand():
    """Its second step, block by block: 30 MiB and one byte take 512 more, 600 KiB a small segment, 6 MiB a segment of 20 MiB."""
    timeline = record(histories.small())
    weight = 30 * MIB + 512

    assert (timeline.begin, timeline.end, timeline.is_whole_run) == (11, 19, False)
    assert timeline.phases == (Span(Phase.FORWARD, 0, 2), Span(Phase.BACKWARD, 2, 6), Span(Phase.OPTIMIZER_STEP, 6, 8))
    assert timeline.start == {C.PARAMETER: weight}
    assert timeline.changes == [600 * KIB, 6 * MIB, 2 * MIB, -6 * MIB, -600 * KIB, 0, 0, -2 * MIB]
    assert timeline.reserved == [54 * MIB] * 8
    assert (timeline.start_reserved, timeline.peak_reserved) == (54 * MIB, 54 * MIB)
    assert timeline.peak[:4] == (2, Phase.BACKWARD, weight + 600 * KIB + 8 * MIB, 54 * MIB)
    assert [(a.name, a.scope, a.instances, a.nbytes) for a in timeline.peak.alive] == [
        ("weight", "model.layers.*.mlp", 1, weight),
        ("logits", "lm_head", 1, 6 * MIB),
        ("gradient", "model.layers.*.mlp", 1, 2 * MIB),
        ("mm", "model.layers.*.mlp", 1, 600 * KIB),
    ]
    assert (timeline.usable_bytes, timeline.failure, timeline.flushes) == (None, None, [])


def test_the_whole_run_begins_with_the_loading():
    """Every event, an empty start, and the flush that loading ends with."""
    timeline = record(histories.small(), whole_run=True)

    assert (timeline.begin, timeline.end, timeline.is_whole_run) == (0, 21, True)
    assert timeline.start == {}
    assert timeline.reserved[:3] == [64 * MIB, 64 * MIB, 32 * MIB]
    assert timeline.peak.event == 19
    assert timeline.peak_reserved == 94 * MIB


@pytest.mark.parametrize("whole_run", [False, True])
@pytest.mark.parametrize("settings", ["", "expandable_segments:True", "max_split_size_mb:64"])
def test_columns_are_what_the_allocator_holds(settings, whole_run):
    """Category by category, at every event, against a replay that adds up all live blocks each time."""
    parsed = AllocatorSettings.parse(settings)
    timeline = record(histories.training(3, 2, 8), None, parsed, whole_run=whole_run)
    expected = by_hand(timeline, parsed)

    for i, (sums, reserved) in enumerate(expected):
        assert {category: column[i] for category, column in timeline.by_category.items() if column[i]} == sums
        assert (timeline.allocated[i], timeline.reserved[i]) == (sum(sums.values()), reserved)


@pytest.mark.parametrize("whole_run", [False, True])
def test_the_peak_is_the_first_highest_event_and_adds_up(whole_run):
    """Its parts, by category and by name, are the whole."""
    timeline = record(histories.training(3, 2, 8), whole_run=whole_run)
    peak = timeline.peak
    sums = by_hand(timeline)

    assert peak.allocated_bytes == max(sum(parts.values()) for parts, _ in sums)
    assert peak.event == [sum(parts.values()) for parts, _ in sums].index(peak.allocated_bytes)
    assert peak.by_category == sums[peak.event][0]
    assert sum(item.nbytes for item in peak.alive) == peak.allocated_bytes
    assert [item.nbytes for item in peak.alive] == sorted((item.nbytes for item in peak.alive), reverse=True)


def test_layers_that_differ_by_their_number_are_one_row():
    """Only a whole part of a path is a layer's number."""
    history = History()
    with histories.stretch(history, Phase.FORWARD):
        for scope in ("model.layers.0.mlp", "model.layers.11.mlp", "conv1d.0", "conv2d.0"):
            history.add(MIB, "weight", C.PARAMETER, scope)
    alive = record(history).peak.alive

    assert {item.scope: item.instances for item in alive} == {"model.layers.*.mlp": 2, "conv1d.*": 1, "conv2d.*": 1}


def test_a_step_that_only_frees_peaks_before_it():
    """The peak is then what is alive at the start."""
    history = History()
    with histories.stretch(history, Phase.LOAD):
        weight = history.add(MIB, "weight", C.PARAMETER)
    with histories.stretch(history, Phase.OPTIMIZER_STEP):
        history.drop(weight)
    peak = record(history).peak

    assert (peak.event, peak.phase, peak.allocated_bytes, peak.reserved_bytes) == (-1, Phase.OPTIMIZER_STEP, MIB, 2 * MIB)


def test_a_full_card_flushes_first_and_is_told_when_that_does_not_help():
    """80 MiB: the evaluation's 40 MiB fit once 22 MiB of cached segments are given back. 70 MiB: they do not."""
    tight = record(histories.small(), 80 * MIB, whole_run=True)
    full = record(histories.small(), 70 * MIB, whole_run=True)

    assert (tight.failure, tight.flushes, tight.reserved[19]) == (None, [19], 72 * MIB)
    assert full.failure == (19, Phase.EVALUATION, 10, 40 * MIB, 30 * MIB + 512, 32 * MIB)
    assert (full.flushes, full.peak_reserved) == ([], 94 * MIB)  # as on an endless card
    assert record(histories.small(), 70 * MIB).failure == full.failure


def test_a_small_card_gets_a_smaller_warm_up():
    """The card less 1.2 GiB, as transformers has it; on an endless card the whole checkpoint."""
    history = History()
    with histories.stretch(history, Phase.LOAD):
        history.warm_up = history.add(20 * GIB, "warm-up", C.TEMPORARY)
        history.drop(history.warm_up)
    small = record(history, 15 * GIB, total_bytes=16 * GIB)
    trace = snapshot(history, 15 * GIB, total_bytes=16 * GIB)["device_traces"][0]

    most = 16 * GIB - GIB * 12 // 10

    assert (small.failure, small.changes[0]) == (None, -(-most // (2 * MIB)) * 2 * MIB)  # a segment of its own, nothing split off
    assert [entry["size"] for entry in trace if entry["action"] == "alloc"] == [most]
    assert record(history).changes[0] == 20 * GIB


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("LPFBO", (2, 5)),
        ("LPFBOFBOE", (5, 8)),
        ("LFBFBFBO", (1, 8)),
        ("LFBOFBFBOES", (4, 9)),
        ("LFBOFBEFBO", (7, 10)),
        ("LFE", (0, 3)),
        ("O", (0, 1)),
    ],
)
def test_the_steady_step_is_the_last_with_all_its_micro_batches(order, expected):
    """Forward and backward, as often as gradients are accumulated, up to the last optimizer's step; everything where nothing is trained."""
    letters = {phase.value[0].upper(): phase for phase in Phase}
    history = History()
    for letter in order:
        with histories.stretch(history, letters[letter]):
            history.add(512, "x", C.TEMPORARY)

    assert steady_step(history) == expected


def test_stretches_of_one_phase_are_one_span():
    """Layer by layer in the history, once in the picture; empty ones are left out."""
    history = History()
    for phase, count in ((Phase.FORWARD, 1), (Phase.BACKWARD, 0), (Phase.FORWARD, 2), (Phase.BACKWARD, 1)):
        with histories.stretch(history, phase, 0):
            for _ in range(count):
                history.add(512, "x", C.TEMPORARY)

    assert phases(history) == [Span(Phase.FORWARD, 0, 3), Span(Phase.BACKWARD, 3, 4)]


def test_an_empty_history_is_refused():
    """There is nothing to draw."""
    with pytest.raises(ValueError, match="at least one event"):
        record(History())
