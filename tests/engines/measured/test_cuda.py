"""The parts of the measurement on a card that need none: its counters by phase, and out of memory, over a stand-in for torch's."""

from __future__ import annotations

from typing import Any

import pytest

from planner.ledger import Category, Phase

torch = pytest.importorskip("torch")
for library in ("transformers", "peft", "bitsandbytes", "trl"):
    pytest.importorskip(library)

from planner.engines.measured import cuda  # noqa: E402
from planner.engines.measured.allocator_history import history_of, requested_peaks  # noqa: E402
from planner.engines.measured.tracker import Tracker  # noqa: E402


class Card:
    """An allocator that counts as torch's does, in blocks of 512 bytes."""

    def __init__(self) -> None:
        self.trace: list[dict[str, Any]] = []
        self.sizes: dict[int, int] = {}
        self.number = self.peak = self.requested_peak = 0

    def allocate(self, address: int, size: int) -> None:
        self.number += 1
        self.sizes[address] = size
        self.trace.append({"action": "alloc", "addr": address, "size": size})
        self.peak, self.requested_peak = max(self.peak, self.allocated()), max(self.requested_peak, sum(self.sizes.values()))

    def free(self, address: int) -> None:
        self.trace.append({"action": "free_requested", "addr": address, "size": self.sizes.pop(address)})

    def allocated(self, _: int = 0) -> int:
        return sum(-(-size // 512) * 512 for size in self.sizes.values())

    def reset(self, _: int) -> None:
        self.peak, self.requested_peak = self.allocated(), sum(self.sizes.values())

    def stats(self, _: int) -> dict[str, int]:
        return {"allocated_bytes.all.peak": self.peak, "reserved_bytes.all.peak": 2 << 20, "requested_bytes.all.peak": self.requested_peak}

    def snapshot(self, _: int) -> dict[str, Any]:
        return {"device_traces": [list(self.trace)]}

    def record(self, **given: Any) -> None:
        self.trace = []


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """Torch's counters are the stand-in's."""
    made = Card()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", made.reset)
    monkeypatch.setattr(torch.cuda, "memory_stats", made.stats)
    monkeypatch.setattr(torch.cuda, "memory_stats_as_nested_dict", lambda _: {"allocation": {"all": {"allocated": 7 + made.number}}})
    monkeypatch.setattr(torch.cuda, "memory_allocated", made.allocated)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2 << 20)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", made.snapshot)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", made.record)
    return made


def test_phases_are_counted_apart_and_recorded_whole(card: Card) -> None:
    """Peaks begin anew with each phase; what happens between two belongs to the next; history and counters say the same."""
    told: list[Any] = []
    counters = cuda.Counters(0, told.append, None)
    counters.record()
    for phase, steps in ((Phase.LOAD, [(1, 700)]), (Phase.FORWARD, [(2, 100), (3, 2000)])):
        counters(phase, True)
        for address, size in steps:
            card.allocate(address, size)
        counters(phase, False)
        card.allocate(9, 50)
        card.free(9)
    history = history_of(counters.stages, [])

    assert counters.allocated == {Phase.LOAD: 1024, Phase.FORWARD: 1024 + 512 + 2048}
    assert counters.requested == requested_peaks(history) == {Phase.LOAD: 700, Phase.FORWARD: 2800}
    assert [s.phase for s in history.stretches] == [Phase.LOAD, Phase.FORWARD, Phase.FORWARD]
    assert cuda.unbalanced(requested_peaks(history), counters.requested) == []
    assert counters.num_allocations == card.number
    assert [m["phase"] for m in told if m["begins"]] == ["load", "forward"]


def test_books_that_do_not_balance_are_told() -> None:
    """The phase, and both figures."""
    (sentence,) = cuda.unbalanced({Phase.BACKWARD: 1000}, {Phase.BACKWARD: 1234, Phase.SAVE: 0})

    assert sentence == "backward: the allocator's history has 1,000 bytes asked for at its peak, its counter 1,234"


def test_out_of_memory_says_what_is_known(card: Card) -> None:
    """What no tracker saw is told as such, so that the parts are the whole."""
    card.allocate(1, 5000)
    tracker = Tracker("cpu", {})
    with tracker, tracker.during(Phase.FORWARD):
        kept = torch.ones(256)
        full = cuda.out_of_memory(tracker, 0, 9999)

    assert (full.requested_bytes, full.allocated_bytes, full.reserved_bytes) == (9999, 5120, 2 << 20)
    assert full.by_category == {Category.ACTIVATION: 1024, Category.UNATTRIBUTED: 4096}
    assert full.phase is Phase.FORWARD
    assert kept.numel() == 256


def test_a_build_of_torch_without_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    from planner.engines.measured.run import Order
    from planner.errors import UnavailableError
    from tests.engines.measured.runs import planned

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cuda, "device_seen", lambda _: None)
    with pytest.raises(UnavailableError, match="sees no card cuda:3") as error:
        cuda.measure_on_card(Order(*planned("llama"), device="cuda:3"), lambda _: None)
    assert "pytorch.org" in str(error.value.hint)
