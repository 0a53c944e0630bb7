"""A run as PyTorch's memory viewer opens it."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import pickletools
import re
import shutil
import subprocess
from bisect import bisect
from pathlib import Path

import pytest

from planner.allocator import AllocatorSettings, CachingAllocator
from planner.errors import InvalidOutputError
from planner.history import History
from planner.ledger import Category, Phase
from planner.snapshot import dump, snapshot
from planner.timeline import record
from planner.units import GIB, MIB
from tests import histories

PAGE = 2 * MIB
# pytorch/pytorch@00067369c9339bed950762afec327514d6fa2566, torch/utils/viz/MemoryViz.js, unpickle(): the opcodes of its switch, less
# those for None, tuples and floats, which a snapshot here does without. Protocols 2 to 4 alone are let in.
OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "APPEND", "APPENDS", "EMPTY_LIST", "LIST", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "BININT",
    "BININT1", "BININT2", "LONG1", "NEWTRUE", "NEWFALSE", "SHORT_BINUNICODE", "BINUNICODE", "BINGET", "LONG_BINGET", "BINPUT",
    "LONG_BINPUT", "MEMOIZE",
}  # fmt: skip
SETTINGS = {
    "default": ("", None),
    "tight": ("", 1680 * MIB),
    "full": ("", 1000 * MIB),
    "expandable": ("expandable_segments:True", None),
    "expandable, tight": ("expandable_segments:True", 1680 * MIB),
    "collecting": ("garbage_collection_threshold:0.6,per_process_memory_fraction:0.9", 2 * GIB),
    "unsplit": ("max_split_size_mb:21", 2 * GIB),
}


def taken(settings: str, usable: int | None) -> dict:
    return snapshot(histories.training(3, 2, 8), usable, AllocatorSettings.parse(settings))


def pages(address: int, size: int) -> range:
    assert address % PAGE == size % PAGE == 0

    return range(address // PAGE, (address + size) // PAGE)


@pytest.mark.parametrize("case", SETTINGS)
def test_the_trace_leads_to_the_segments(case):
    """Followed entry by entry, blocks never overlap, lie in segments that are there, and what remains is what the segments say."""
    found = taken(*SETTINGS[case])
    mapped: set[int] = set()
    live: dict[int, int] = {}
    order: list[int] = []
    for entry in found["device_traces"][0]:
        action = entry["action"]
        if action in ("segment_alloc", "segment_map"):
            new = set(pages(entry["addr"], entry["size"]))
            assert not mapped & new
            mapped |= new
        elif action in ("segment_free", "segment_unmap"):
            old = set(pages(entry["addr"], entry["size"]))
            assert old <= mapped
            mapped -= old
        elif action == "alloc":
            begin, end = entry["addr"], entry["addr"] + entry["size"]
            assert set(range(begin // PAGE, (end - 1) // PAGE + 1)) <= mapped
            at = bisect(order, begin)
            assert at == 0 or order[at - 1] + live[order[at - 1]] <= begin
            assert at == len(order) or end <= order[at]
            order.insert(at, begin)
            live[begin] = entry["size"]
        elif action == "free_completed":
            assert live.pop(entry["addr"]) == entry["size"]
            order.remove(entry["addr"])
    blocks = [block for segment in found["segments"] for block in segment["blocks"]]

    assert mapped == {page for s in found["segments"] for page in pages(s["address"], s["total_size"])}
    assert live == {b["address"]: b["requested_size"] for b in blocks if b["state"] == "active_allocated"}


def test_segments_are_the_allocators():
    """The same addresses and sizes as `CachingAllocator.segments()` after the same run; blocks fill them without a gap."""
    history = histories.small()
    allocator, live = CachingAllocator(), {}
    for position, event in enumerate(history.events):
        if position in history.flushes:
            allocator.empty_cache()
        if event >= 0:
            live[event] = allocator.allocate(history.sizes[event])
        else:
            allocator.free(live.pop(~event))
    found = snapshot(history)["segments"]

    assert [(s["address"], s["total_size"], s["segment_type"] == "large") for s in found] == [s[:3] for s in sorted(allocator.segments())]
    for segment in found:
        ends = [block["address"] + block["size"] for block in segment["blocks"]]
        assert [b["address"] for b in segment["blocks"]] == [segment["address"], *ends[:-1]]
        assert ends[-1] == segment["address"] + segment["total_size"]
    assert sum(s["allocated_size"] for s in found) == allocator.allocated_bytes
    assert sum(s["requested_size"] for s in found) == allocator.requested_bytes


def test_the_small_history_by_hand():
    """The first entries: a segment for the warmup, its life, the flush that gives it back, the weight with its frame and phase."""
    trace = snapshot(histories.small())["device_traces"][0]

    assert [(e["action"], e["size"], e["time_us"]) for e in trace[:7]] == [
        ("segment_alloc", 64 * MIB, 0),
        ("alloc", 64 * MIB, 0),
        ("free_requested", 64 * MIB, 1),
        ("free_completed", 64 * MIB, 1),
        ("segment_free", 64 * MIB, 2),
        ("segment_alloc", 32 * MIB, 2),
        ("alloc", 30 * MIB + 1, 2),
    ]
    assert trace[6]["frames"] == [{"name": "weight (parameter)", "filename": "model.layers.0.mlp", "line": 0}]
    assert (trace[6]["category"], trace[6]["user_metadata"], trace[6]["stream"]) == ("parameter", "load", 0)


def test_recorded_runs_are_spelled_as_pytorch_spelled_them(shared: Path):
    """From allocations and frees alone, entry by entry what PyTorch's own recording has, but for the small pool's segments."""
    paths = sorted((shared / "measurements" / "allocator").glob("*.json.gz"))

    assert paths
    for path in paths:
        with gzip.open(path) as file:
            recorded = json.load(file)["events"]
        history, storages, expected = History(), {}, []
        with histories.stretch(history, Phase.FORWARD):
            for action, *rest in recorded:
                if action == "alloc":
                    storages[rest[0]] = history.add(rest[1], "recorded", Category.TEMPORARY)
                elif action == "free":
                    history.drop(storages[rest[0]])
                expected += [(action, history.sizes[storages[rest[0]]] if action in ("alloc", "free") else rest[-1])]
        trace = snapshot(history)["device_traces"][0]
        found = [(entry["action"].replace("free_completed", "free"), entry["size"]) for entry in trace]
        small = ("segment_alloc", 2 * MIB)

        assert [e for e in found if e[0] != "free_requested" and e != small] == [e for e in expected if e != small]
        assert found.count(small) == expected.count(small)


def test_a_full_card_ends_the_trace():
    """With what was asked for and what the card had left, and the segments of that moment."""
    found = snapshot(histories.small(), 70 * MIB)
    last = found["device_traces"][0][-1]

    assert (last["action"], last["size"], last["device_free"], last["time_us"]) == ("oom", 40 * MIB, 38 * MIB, 19)
    assert "addr" not in last
    assert [segment["total_size"] for segment in found["segments"]] == [32 * MIB]


def test_phases_are_annotations():
    """A start and an end each, by the clock of the trace."""
    notes = snapshot(histories.small())["external_annotations"]

    assert [(n["name"], n["stage"], n["time_us"]) for n in notes[:4]] == [
        ("load", "START", 0), ("load", "END", 3), ("forward", "START", 3), ("forward", "END", 5),
    ]  # fmt: skip


def test_the_page_knows_every_opcode(tmp_path):
    """Dicts, lists, texts, booleans and integers, in protocol 4, by opcodes that the page's own unpickler has."""
    dump(histories.training(3, 2, 8), tmp_path / "run.pickle", 2 * GIB)
    content = (tmp_path / "run.pickle").read_bytes()
    ops = list(pickletools.genops(content))

    assert {op.name for op, _, _ in ops} <= OPCODES
    assert [argument for op, argument, _ in ops if op.name == "PROTO"] == [4]
    assert plain(pickle.loads(content)) == []  # noqa: S301 - written two lines above


def plain(value: object) -> list[object]:
    """What in it is no dict, list, text or integer, or is too large for the page's numbers."""
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in (plain(item) if type(key) is str else [key])]
    if isinstance(value, list):
        return [found for item in value for found in plain(item)]
    return [] if isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**53) else [value]


@pytest.mark.parametrize("case", SETTINGS)
def test_one_event_is_of_the_unknown_category(case):
    """The page colours by category and fails where none is of this one."""
    trace = taken(*SETTINGS[case])["device_traces"][0]

    assert "unknown" in {entry["category"] for entry in trace if "category" in entry}


@pytest.mark.parametrize("case", SETTINGS)
def test_torchs_own_readers_take_it(case, capsys):
    """Those of torch/cuda/_memory_viz.py: the summary of segments adds up by its own assertions, the trace names every segment."""
    viz = pytest.importorskip("torch.cuda._memory_viz")
    found = taken(*SETTINGS[case])
    reserved = sum(segment["total_size"] for segment in found["segments"])

    assert f"total_reserved: {viz.Bytes(reserved)}\n" in viz.segsum(found)
    assert "MEM[" not in viz.trace(found) or "expandable" in case
    lines = viz.memory(found, format_flamegraph=str).splitlines()
    assert sum(int(line.rpartition(" ")[2]) for line in lines) == reserved
    assert viz.segments(found, format_flamegraph=str).count("seg_") == len(lines)
    assert "only_after" in viz.compare([], found["segments"], format_flamegraph=str)
    assert "add_local_files" in viz.trace_plot(found)
    assert "Allocator State History" in viz.segment_plot(found)
    capsys.readouterr()


def test_the_pages_own_loader_takes_it(tmp_path):
    """MemoryViz.js unpickles and annotates it: the peak of the page's timeline is the most that is asked for at once."""
    source, node = os.environ.get("QPLAN_MEMORY_VIZ"), shutil.which("node")
    if not source or node is None:
        pytest.skip("set QPLAN_MEMORY_VIZ to torch/utils/viz/MemoryViz.js of a PyTorch checkout; needs node")
    text = Path(source).read_text(encoding="utf-8")
    parts = [re.search(rf"^function {name}\(.*?^}}$", text, re.DOTALL | re.MULTILINE)[0] for name in FUNCTIONS]
    history = histories.training(3, 2, 8)
    dump(history, tmp_path / "run.pickle")
    (tmp_path / "read.js").write_text("\n".join((*parts, READ)), encoding="utf-8")
    done = subprocess.run([node, tmp_path / "read.js", tmp_path / "run.pickle"], capture_output=True, text=True, check=True)
    live = most = 0
    for event in history.events:
        live += history.sizes[event] if event >= 0 else -history.sizes[~event]
        most = max(most, live)

    assert json.loads(done.stdout) == {"peak": most, "segments": len(snapshot(history)["segments"]), "hasUnknown": True}


FUNCTIONS = ("version_space", "annotate_snapshot", "unpickle")
READ = """
const bytes = require("fs").readFileSync(process.argv[2]);
const found = unpickle(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
annotate_snapshot(found);
let live = 0, peak = 0;
for (const e of found.device_traces[0]) {
  live += e.action === "alloc" ? e.size : e.action === "free" ? -e.size : 0;
  peak = Math.max(peak, live);
}
console.log(JSON.stringify({peak, segments: found.segments.length, hasUnknown: found.categories.includes("unknown")}));
"""


def test_the_most_that_is_reserved_is_the_timelines():
    """Two replays of one history, written apart, agree."""
    history = histories.training(3, 2, 8)
    held = most = 0
    for entry in snapshot(history)["device_traces"][0]:
        held += {"segment_alloc": 1, "segment_free": -1}.get(entry["action"], 0) * entry["size"]
        most = max(most, held)

    assert most == record(history, whole_run=True).peak_reserved


def test_another_ending_is_refused(tmp_path):
    """Before the run is replayed."""
    with pytest.raises(InvalidOutputError, match=r"does not end in \.pickle or \.pkl"):
        dump(histories.small(), tmp_path / "run.json")
