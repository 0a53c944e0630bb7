"""The caching allocator against recorded runs of the real one, an independent model, and torch's own reading of settings."""

from __future__ import annotations

import ctypes
import gzip
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.allocator import AllocatorSettings, Block, CachingAllocator, OutOfMemory, replay
from planner.allocator.settings import IGNORED_KEYS
from planner.errors import InvalidRecipeError
from tests.allocator_model import Model, Space

MIB = 1 << 20
CAPACITIES = st.sampled_from([None, 48 * MIB, 100 * MIB, 200 * MIB])
CONFIGURATIONS = (
    "",
    "max_split_size_mb:20",
    "large_segment_size_mb:12,max_split_size_mb:12,max_non_split_rounding_mb:14",
    "roundup_power2_divisions:[1:4,2:0,4:2,8:8,>:2]",
    "expandable_segments:True",
    "expandable_segments:True,max_split_size_mb:20,large_segment_size_mb:14",
    "garbage_collection_threshold:0.5,per_process_memory_fraction:0.8",
    "expandable_segments:True,per_process_memory_fraction:0.6",
)
EDGES = (1, 512, 513, MIB - 1, MIB, MIB + 1, 2 * MIB, 10 * MIB - 512, 10 * MIB, 12 * MIB, 20 * MIB, 26 * MIB, 40 * MIB)


@st.composite
def action_lists(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Requests of a few sizes over and over, some of them on the edges of the rules, and frees of what they gave."""
    chance = draw(st.randoms(use_true_random=False))
    sizes = [
        chance.choice((*EDGES, chance.randrange(1, 4096), chance.randrange(1, MIB), chance.randrange(MIB, 30 * MIB))) for _ in range(8)
    ]
    frees = draw(st.sampled_from((0.3, 0.45, 0.6)))
    return [
        ("free", chance.randrange(100)) if chance.random() < frees else ("allocate", chance.choice(sizes))
        for _ in range(draw(st.integers(1, 80)))
    ]


def run(allocator: CachingAllocator, actions: list[tuple[str, int]]) -> list[Block]:
    """Do what a strategy drew; returns what is alive at the end."""
    live: list[Block] = []
    for action, value in actions:
        if action == "free":
            if live:
                allocator.free(live.pop(value % len(live)))
            continue
        try:
            live.append(allocator.allocate(value))
        except OutOfMemory:
            continue
    return live


@pytest.mark.parametrize("text", CONFIGURATIONS)
@settings(max_examples=60, deadline=None)
@given(actions=action_lists(), capacity=CAPACITIES)
def test_every_block_is_where_an_independent_model_puts_it(text, actions, capacity):
    """Place and size of each block, reserved bytes and flushes are those of a model that searches intervals by brute force."""
    chosen = AllocatorSettings.parse(text)
    allocator, model = CachingAllocator(capacity, chosen), Model(capacity, chosen)
    live: list[tuple[Block, Space, int]] = []
    bases: dict[Space, int] = {}
    for action, value in actions:
        if action == "free" and value > 90:
            allocator.empty_cache()
            model.empty_cache()
        elif action == "free" and live:
            block, space, begin = live.pop(value % len(live))
            allocator.free(block)
            model.free(space, begin)
        elif action == "allocate":
            expected = model.allocate(value)
            try:
                block = allocator.allocate(value)
            except OutOfMemory:
                assert expected is None
            else:
                assert expected is not None
                space, begin, size = expected
                assert (block.address, block.size) == (bases.setdefault(space, block.address - begin) + begin, size)
                live.append((block, space, begin))

        assert (allocator.reserved_bytes, allocator.num_flushes) == (model.reserved, model.flushes)


@pytest.mark.parametrize("text", CONFIGURATIONS)
@settings(max_examples=20, deadline=None)
@given(actions=action_lists(), capacity=CAPACITIES)
def test_the_books_balance(text, actions, capacity):
    """Live blocks never overlap, sums agree with the counters and with the segments, and the capacity holds."""
    allocator = CachingAllocator(capacity, AllocatorSettings.parse(text))
    live = run(allocator, actions)
    spans = sorted((block.address, block.address + block.size) for block in live)
    blocks = [block for segment in allocator.segments() for block in segment.blocks]

    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert all(block.size >= block.requested for block in live)
    assert allocator.allocated_bytes == sum(block.size for block in live)
    assert allocator.requested_bytes == sum(block.requested for block in live)
    assert allocator.reserved_bytes == sum(segment.size for segment in allocator.segments()) == sum(size for _, size, _, _ in blocks)
    assert Counter((address, size, n) for address, size, n, is_live in blocks if is_live) == Counter(
        (block.address, block.size, block.requested) for block in live
    )
    assert capacity is None or allocator.peak_reserved_bytes <= capacity
    assert allocator.allocated_bytes <= allocator.peak_allocated_bytes <= allocator.peak_reserved_bytes


@pytest.mark.parametrize("text", CONFIGURATIONS)
@settings(max_examples=10, deadline=None)
@given(actions=action_lists())
def test_when_all_is_freed_each_segment_is_one_cached_block(text, actions):
    """Nothing stays split, nothing stays allocated, and emptying the cache gives everything back."""
    allocator = CachingAllocator(None, AllocatorSettings.parse(text))
    for block in run(allocator, actions):
        allocator.free(block)

    assert [len(segment.blocks) for segment in allocator.segments()] == [1] * len(allocator.segments())
    assert (allocator.allocated_bytes, allocator.requested_bytes) == (0, 0)
    allocator.empty_cache()
    assert (allocator.reserved_bytes, allocator.segments()) == (0, ())


def recordings(shared: Path) -> list[Path]:
    """Sequences of events that the real allocator went through."""
    return sorted((shared / "measurements" / "allocator").glob("*.json.gz"))


def test_recorded_runs_are_replayed_exactly(shared: Path):
    """Given allocations and frees alone, every large segment comes at the same allocation, and as many small ones come."""
    assert recordings(shared)
    for path in recordings(shared):
        expected, found, small = [], [], [0, 0]
        allocator, live = CachingAllocator(), {}
        with gzip.open(path) as file:
            events = json.load(file)["events"]
        for position, (kind, *rest) in enumerate(events):
            before = allocator.reserved_bytes
            if kind == "alloc":
                live[rest[0]] = allocator.allocate(rest[1])
                grown = allocator.reserved_bytes - before
                small[0] += grown == 2 * MIB
                found += [(position, grown)] if grown > 2 * MIB else []
            elif kind == "free":
                allocator.free(live.pop(rest[0]))
            elif kind == "segment_alloc":
                small[1] += rest[0] == 2 * MIB
                expected += [(position + 1, rest[0])] if rest[0] > 2 * MIB else []

        assert found == expected
        assert small[0] == small[1]


def test_a_replay_by_index_is_the_same_as_one_by_hand(shared: Path):
    """`replay` takes births as indices and deaths as their complements, and stops where the card is full."""
    path = recordings(shared)[0]
    with gzip.open(path) as file:
        recorded = json.load(file)["events"]
    sizes = {event[1]: event[2] for event in recorded if event[0] == "alloc"}
    events = [event[1] if event[0] == "alloc" else ~event[1] for event in recorded if event[0] in ("alloc", "free")]
    reserved = sum(event[1] for event in recorded if event[0] == "segment_alloc")

    endless = replay(events, sizes, CachingAllocator())
    full = replay(events, sizes, CachingAllocator(reserved // 2))
    assert (endless.peak_reserved_bytes, endless.failed_at, endless.num_flushes) == (reserved, None, 0)
    assert sum(block.requested for block in endless.live.values()) == sum(sizes[index] for index in endless.live)
    assert full.failed_at is not None and full.failure is not None and full.num_flushes
    assert full.failure.requested == sizes[events[full.failed_at]]


def test_a_full_card_gives_cached_segments_back_before_it_fails():
    """A second size reuses the memory of the first one through a flush; with both alive there is no way out."""
    allocator = CachingAllocator(capacity=100 * MIB)
    allocator.free(allocator.allocate(60 * MIB))
    allocator.allocate(90 * MIB)
    with pytest.raises(OutOfMemory, match=r"tried to allocate 60\.0 MiB") as caught:
        allocator.allocate(60 * MIB)
    error = caught.value

    assert (allocator.peak_reserved_bytes, allocator.num_flushes) == (90 * MIB, 2)
    assert (error.requested, error.allocated, error.reserved, error.capacity) == (60 * MIB, 90 * MIB, 90 * MIB, 100 * MIB)


def test_oversize_blocks_serve_requests_of_about_their_size():
    """From max_split_size on a block is given whole, and only to a request within the rounding of its size."""
    found = []
    for cached, request in ((38, 19), (38, 20), (40, 20), (40, 21)):
        allocator = CachingAllocator(settings=AllocatorSettings.parse("max_split_size_mb:20"))
        allocator.free(allocator.allocate(cached * MIB))
        found.append((allocator.allocate(request * MIB).size // MIB, allocator.reserved_bytes // MIB))

    assert found == [(20, 58), (38, 38), (20, 60), (40, 40)]


def test_a_full_card_gives_oversize_blocks_back_first():
    """Where blocks have a size limit, a failed cudaMalloc costs the smallest sufficient cached one, else the largest ones."""
    left = []
    for request in (19, 60):
        allocator = CachingAllocator(85 * MIB, AllocatorSettings.parse("max_split_size_mb:20"))
        for block in [allocator.allocate(size * MIB) for size in (12, 40, 20)]:
            allocator.free(block)
        allocator.allocate(request * MIB)
        left.append([segment.size // MIB for segment in allocator.segments()])

    assert left == [[20, 40, 12], [60, 12]]


def test_a_memory_fraction_is_of_the_whole_card():
    """A process may reserve its share of the card to the last byte, whatever else the card holds."""
    allocator = CachingAllocator(100 * MIB, AllocatorSettings.parse("per_process_memory_fraction:0.5"), device_bytes=120 * MIB)
    allocator.allocate(60 * MIB)
    with pytest.raises(OutOfMemory):
        allocator.allocate(1)

    assert allocator.capacity == allocator.reserved_bytes == 60 * MIB


def test_garbage_collection_releases_what_waited_longest():
    """Above the threshold, a new segment costs those that have been cached for longer than the average, and no others."""
    chosen = AllocatorSettings.parse("garbage_collection_threshold:0.5,per_process_memory_fraction:0.8")
    allocator = CachingAllocator(100 * MIB, chosen)
    old, busy, recent = (allocator.allocate(size * MIB) for size in (12, 14, 16))
    allocator.free(old)
    for _ in range(3):
        allocator.free(busy)
        busy = allocator.allocate(14 * MIB)
    allocator.free(busy)
    allocator.free(recent)
    allocator.allocate(30 * MIB)

    assert [segment.size for segment in allocator.segments()] == [30 * MIB, 16 * MIB, 14 * MIB]
    assert (allocator.num_flushes, allocator.capacity) == (0, 80 * MIB)


def test_expandable_segments_serve_what_fragments_a_fixed_card():
    """A live block in the middle of a segment keeps all of it; an expandable one grows behind the block instead."""
    served = []
    for text in ("", "expandable_segments:True"):
        allocator = CachingAllocator(60 * MIB, AllocatorSettings.parse(text))
        allocator.free(allocator.allocate(40 * MIB))
        first, _, last = (allocator.allocate(size * MIB) for size in (20, 2, 18))
        allocator.free(first)
        allocator.free(last)
        try:
            served.append(allocator.allocate(38 * MIB).size)
        except OutOfMemory:
            served.append(0)

    assert served == [0, 38 * MIB]


def test_nothing_is_allocated_for_nothing():
    """Zero bytes take no memory, negative ones are refused, and a block is freed once."""
    allocator = CachingAllocator()
    empty, block = allocator.allocate(0), allocator.allocate(1)

    assert (empty.size, block.size, block.requested) == (0, 512, 1)
    allocator.free(empty)
    allocator.free(block)
    assert allocator.reserved_bytes == 2 * MIB
    with pytest.raises(ValueError, match="must not be negative"):
        allocator.allocate(-1)
    with pytest.raises(ValueError, match="freed once"):
        allocator.free(block)


TEXTS = [
    "",
    "expandable_segments:True",
    " expandable_segments : True , max_split_size_mb : 64 ",
    "expandable_segments:False,",
    "max_split_size_mb:20",
    "large_segment_size_mb:11,max_split_size_mb:11",
    "max_non_split_rounding_mb:32,max_split_size_mb:40",
    "garbage_collection_threshold:0.6",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]",
    "roundup_power2_divisions:[64:0,2:2,>:16],expandable_segments:True",
    "roundup_power2_divisions:[]",
    "backend:native,pinned_use_background_threads:True",
]
REFUSED = [
    "expandable_segments:true",
    "expandable_segments=True",
    "max_split_size_mb:19",
    "large_segment_size_mb:10",
    "large_segment_size_mb:30,max_split_size_mb:20",
    "max_split_size_mb:20,large_segment_size_mb:30",
    "max_non_split_rounding_mb:10",
    "max_split_size_mb:many",
    "max_split_size_mb:",
    "max_split_size_mb",
    "garbage_collection_threshold:0",
    "garbage_collection_threshold:1.0",
    "roundup_power2_divisions:3",
    "roundup_power2_divisions:0",
    "roundup_power2_divisions:[3:1]",
    "roundup_power2_divisions:[64:8",
    ":",
]


def test_settings_are_read_as_torch_reads_them():
    """Torch accepts and refuses the same texts, and finds the same divisions for every power of two."""
    torch = pytest.importorskip("torch")
    tell = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    library = Path(torch.__file__).parent / "lib" / "libc10.so"
    if tell is None or not library.exists():
        pytest.skip("this torch does not take allocator settings")
    ask = ctypes.CDLL(str(library))._ZN3c1016CachingAllocator26AcceleratorAllocatorConfig24roundup_power2_divisionsEm
    ask.argtypes, ask.restype = [ctypes.c_size_t], ctypes.c_size_t
    try:
        for text in TEXTS:
            tell(text + ",large_segment_size_mb:20" if text and "large" not in text and text[-1] != "," else text)
            divisions = AllocatorSettings.parse(text).roundup_power2_divisions

            assert [ask(MIB << power) for power in range(16)] == list(divisions), text
        for text in REFUSED:
            with pytest.raises((ValueError, RuntimeError)):
                tell(text)
            with pytest.raises(InvalidRecipeError):
                AllocatorSettings.parse(text)
    finally:
        tell("large_segment_size_mb:20")


def test_unknown_settings_are_refused_with_their_name():
    """A misspelt key and another backend say what is wrong; keys that change no memory pass."""
    with pytest.raises(InvalidRecipeError, match="`max_split_size` is no setting of PyTorch's CUDA allocator"):
        AllocatorSettings.parse("max_split_size:64")
    with pytest.raises(InvalidRecipeError, match="backend is `cudaMallocAsync`"):
        AllocatorSettings.parse("backend:cudaMallocAsync")

    assert AllocatorSettings.parse(",".join(f"{key}:1" for key in sorted(IGNORED_KEYS))) == AllocatorSettings()


def test_the_environment_is_asked_in_torchs_order(monkeypatch: pytest.MonkeyPatch):
    """The CUDA variable hides the newer one, which is read where it is alone."""
    both = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "large_segment_size_mb:32")

    assert AllocatorSettings.from_environment({}) == AllocatorSettings()
    assert AllocatorSettings.from_environment(both) == AllocatorSettings(max_split_size=64 * MIB)
    assert AllocatorSettings.from_environment({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}).expandable_segments
    assert AllocatorSettings.from_environment().large_segment_size == 32 * MIB
