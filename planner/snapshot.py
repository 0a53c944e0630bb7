"""
A run as PyTorch's memory viewer opens it (https://pytorch.org/memory_viz): what `torch.cuda.memory._dump_snapshot()` would write.

The page has an unpickler of its own, which knows protocols 2 to 4 and a third of the opcodes: those of dicts, lists, texts, booleans
and integers are among them, and nothing else is written here.

Source:
    torch@2.13.0, torch/cuda/memory.py (_snapshot: the structure), torch/cuda/_memory_viz.py (the readers in Python);
    pytorch/pytorch, torch/csrc/cuda/memory_snapshot.cpp (the writer), torch/utils/viz/MemoryViz.js (the page).
"""

from __future__ import annotations

import os
import pickle
from typing import Any

from planner import timeline
from planner.allocator import AllocatorSettings, Block, CachingAllocator, OutOfMemory
from planner.files import output_path, write_whole
from planner.history import History
from planner.ledger import Category

SUFFIXES = (".pickle", ".pkl")
PROTOCOL = 4
"""The page refuses protocol 5 (pytorch/pytorch issue 183842), which is Python's default from 3.14 on."""

_UNKNOWN = "unknown"
"""
The page colours by category, and its code fails where no event is of this one (annotate_snapshot: `snapshot.categores.push`).
Segments, which have no category, are given it.
"""


def dump(
    history: History,
    path: str | os.PathLike[str],
    usable_bytes: int | None = None,
    settings: AllocatorSettings | None = None,
    *,
    total_bytes: int | None = None,
) -> int:
    """
    Write a run's snapshot.

    Args:
        history: A run at its full depth.
        path: Where; it ends in .pickle or .pkl.
        usable_bytes: What the card gives to tensors; None for an endless card. The trace ends where the card is full.
        settings: The allocator's.
        total_bytes: The whole card: memory fractions are shares of it, and a loader's warm-up is no larger.

    Returns:
        How many entries its trace has.

    Raises:
        InvalidOutputError: The file cannot be written.
    """
    target = output_path(path, SUFFIXES)
    found = snapshot(history, usable_bytes, settings, total_bytes=total_bytes)
    write_whole(target, lambda file: pickle.dump(found, file, protocol=PROTOCOL))
    return len(found["device_traces"][0])


def snapshot(
    history: History, usable_bytes: int | None = None, settings: AllocatorSettings | None = None, *, total_bytes: int | None = None
) -> dict[str, Any]:
    """
    What `torch.cuda.memory._snapshot()` would return after the run: segments as they are then, and every event up to there.

    Sizes of events are what was asked for, as PyTorch has them; `time_us` is an event's position in the history. The last frame of
    an event is its operation's name and, as file, its module; its `user_metadata` is the phase.

    Args:
        history: A run at its full depth.
        usable_bytes: What the card gives to tensors; None for an endless card. The trace ends where the card is full.
        settings: The allocator's.
        total_bytes: The whole card: memory fractions are shares of it, and a loader's warm-up is no larger.
    """
    settings = settings or AllocatorSettings()
    recorder = _Recorder(history, history.sizes_on(total_bytes), CachingAllocator(usable_bytes, settings, device_bytes=total_bytes))
    recorder.run()
    return {
        "segments": recorder.segments(),
        "device_traces": [recorder.trace],
        "allocator_settings": _settings(settings),
        "external_annotations": _annotations(history, recorder.now),
    }


class _Recorder:
    """
    Replays a history and writes down what PyTorch would.

    Args:
        history: A run at its full depth.
        sizes: Bytes of its storages on this card.
        allocator: Where it is replayed.
    """

    def __init__(self, history: History, sizes: list[int], allocator: CachingAllocator) -> None:
        self.history, self.sizes, self.allocator = history, sizes, allocator
        self.trace: list[dict[str, Any]] = []
        self.now = 0
        self._live: dict[int, Block] = {}
        self._collects = allocator.settings.garbage_collection_threshold > 0
        self._expands = allocator.settings.expandable_segments
        self._known: dict[int, int] = {}  # segments: bytes by address
        self._frames: dict[tuple[str, str, Category], list[dict[str, Any]]] = {}

    def run(self) -> None:
        """Replay, to the end or to where the card is full."""
        events, due = self.history.events, set(self.history.flushes)
        for span in timeline.phases(self.history):
            for position in range(span.begin, span.end):
                self.now, event = position, events[position]
                if position in due:
                    self.allocator.empty_cache()
                    self._compare()
                if event < 0:
                    self._free(~event)
                elif not self._allocate(event, span.phase.value):
                    return
        self.now = len(events)

    def segments(self) -> list[dict[str, Any]]:
        """The allocator's segments with their blocks, by address."""
        owners = {block.address: storage for storage, block in self._live.items() if block.size}
        found = []
        for segment in sorted(self.allocator.segments()):
            active = sum(size for _, size, _, is_live in segment.blocks if is_live)
            found.append(
                {
                    "device": 0,
                    "address": segment.address,
                    "total_size": segment.size,
                    "allocated_size": active,
                    "active_size": active,
                    "requested_size": sum(requested for _, _, requested, _ in segment.blocks),
                    "stream": 0,
                    "segment_type": "large" if segment.is_large else "small",
                    "segment_pool_id": [0, 0],
                    "is_expandable": self._expands,
                    "frames": [],
                    "blocks": [
                        {
                            "address": address,
                            "size": size,
                            "requested_size": requested,
                            "state": "active_allocated" if is_live else "inactive",
                            "frames": self._frames_of(owners[address]) if is_live else [],
                        }
                        for address, size, requested, is_live in segment.blocks
                    ],
                }
            )
        return found

    def _allocate(self, storage: int, phase: str) -> bool:
        """A birth; False where the card is full."""
        allocator, nbytes = self.allocator, self.sizes[storage]
        reserved, flushes = allocator.reserved_bytes, allocator.num_flushes
        frames = self._frames_of(storage)
        try:
            block = self._live[storage] = allocator.allocate(nbytes)
        except OutOfMemory as error:
            self._compare()
            self.trace.append(self._entry("oom", "device_free", error.capacity - error.reserved, nbytes, frames))
            return False
        grown = allocator.reserved_bytes - reserved
        is_new = bool(block.size) and block.previous is None and block.address not in self._known
        if allocator.num_flushes > flushes or (self._collects and is_new) or (self._expands and grown):
            self._compare()
        elif grown:  # one new segment, and the block stands at its beginning
            self._segment("segment_alloc", block.address, grown)
            self._known[block.address] = grown
        if block.size:
            entry = self._entry("alloc", "addr", block.address, nbytes, frames)
            category = self.history.categories[storage]
            entry["category"] = _UNKNOWN if category is Category.UNATTRIBUTED else category.value
            entry["user_metadata"] = phase
            self.trace.append(entry)
        return True

    def _free(self, storage: int) -> None:
        block = self._live.pop(storage)
        address, requested, size = block.address, block.requested, block.size
        self.allocator.free(block)
        if size:
            frames = self._frames_of(storage)
            self.trace += [self._entry(action, "addr", address, requested, frames) for action in ("free_requested", "free_completed")]

    def _compare(self) -> None:
        """Write down which segments came and went since they were last looked at."""
        found = {segment.address: segment.size for segment in self.allocator.segments()}
        gone, come = _differences(self._known, found), _differences(found, self._known)
        went, came = ("segment_unmap", "segment_map") if self._expands else ("segment_free", "segment_alloc")
        for address, size in gone:
            self._segment(went, address, size)
        for address, size in come:
            self._segment(came, address, size)
        self._known = found

    def _segment(self, action: str, address: int, size: int) -> None:
        entry = self._entry(action, "addr", address, size, [])
        entry["category"] = _UNKNOWN
        self.trace.append(entry)

    def _entry(self, action: str, key: str, value: int, size: int, frames: list[dict[str, Any]]) -> dict[str, Any]:
        """One entry of the trace; a dict of its own, since the page writes into it."""
        return {"action": action, key: value, "size": size, "stream": 0, "time_us": self.now, "frames": frames}

    def _frames_of(self, storage: int) -> list[dict[str, Any]]:
        """The one frame of a storage, shared by all that are called alike, which keeps the file small."""
        history = self.history
        key = history.names[storage], history.scopes[storage], history.categories[storage]
        frames = self._frames.get(key)
        if frames is None:
            name, scope, category = key
            frames = self._frames[key] = [{"name": f"{name} ({category.value})", "filename": scope or "-", "line": 0}]
        return frames


def _differences(those: dict[int, int], without: dict[int, int]) -> list[tuple[int, int]]:
    """The ranges of addresses that are in the first but not in the second, as (address, bytes)."""
    found: list[tuple[int, int]] = []
    others = sorted(without.items())
    i = 0
    for begin, size in sorted(those.items()):
        at, end = begin, begin + size
        while i < len(others) and others[i][0] + others[i][1] <= at:
            i += 1
        j = i
        while j < len(others) and others[j][0] < end:
            if others[j][0] > at:
                found.append((at, others[j][0] - at))
            at = max(at, others[j][0] + others[j][1])
            j += 1
        if at < end:
            found.append((at, end - at))
    return found


def _settings(settings: AllocatorSettings) -> dict[str, Any]:
    """The allocator's settings under PyTorch's names, those that are whole numbers."""
    return {
        "max_split_size": -1 if settings.max_split_size is None else settings.max_split_size,
        "expandable_segments": settings.expandable_segments,
        "roundup_power2_divisions": {str(1 << i): parts for i, parts in enumerate(settings.roundup_power2_divisions)},
    }


def _annotations(history: History, end: int) -> list[dict[str, Any]]:
    """The phases, as PyTorch writes what `record_function` marks."""
    return [
        {"name": span.phase.value, "stage": stage, "device": 0, "time_us": min(at, end)}
        for span in timeline.phases(history)
        if span.begin <= end
        for stage, at in (("START", span.begin), ("END", span.end))
    ]
