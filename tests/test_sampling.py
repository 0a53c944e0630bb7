"""What a process holds while it runs, through the real pynvml over a library whose answers change meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from planner import nvml
from planner.errors import UnavailableError
from planner.sampling import MemorySampler, device_seen
from planner.units import GIB, MIB
from tests.nvml_stand_in import A100_TOTAL, LOST, MISMATCH, NO_PERMISSION, NOT_LOADED, NOT_SUPPORTED, T4, card, part

PID = 4_000_001  # above the largest that Linux gives: no such process is here
KEPT = 430 * MIB


def holding(used: int, *rows: tuple[int, int | str]) -> dict[str, str]:
    """A card that holds so much, and who of it."""
    return card(memory=f"{A100_TOTAL} {KEPT} {used}", processes=" ".join(f"{pid}:{held}:-" for pid, held in rows))


def after_a_reading(sampler: MemorySampler) -> None:
    """Wait until the thread has read once more."""
    before = sampler._found.num_samples
    wait_until(lambda: sampler._found.num_samples > before + 1)


def wait_until(holds: Callable[[], bool]) -> None:
    """For ten seconds at most."""
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_peaks_are_told_by_phase(machine):
    """The most that a process held in each phase, its baseline before, and what the whole card held: as the driver said."""
    machine(holding(GIB, (7, GIB)))
    sampler = MemorySampler(device_seen()).start()
    machine.change(holding(GIB, (7, GIB)), **{"pid.7": "x"})
    sampler.watch(os.getpid())
    sampler.phase("load")
    machine.change(holding(9 * GIB, (7, GIB), (os.getpid(), 8 * GIB)))
    after_a_reading(sampler)
    machine.change(holding(4 * GIB, (7, GIB), (os.getpid(), 3 * GIB)))
    sampler.phase("forward")
    machine.change(holding(6 * GIB, (7, GIB), (os.getpid(), 5 * GIB)))
    found = sampler.stop()
    load, forward = found.phase("load"), found.phase("forward")

    assert (found.total_bytes, found.baseline_bytes, found.source) == (A100_TOTAL - KEPT, GIB, "nvml_process")
    assert (load.process_bytes, load.device_used_bytes, load.others_bytes) == (8 * GIB, 9 * GIB, GIB)
    assert (forward.process_bytes, forward.device_used_bytes) == (5 * GIB, 6 * GIB)
    assert (found.process_bytes, found.device_used_bytes, found.is_lost) == (8 * GIB, 9 * GIB, False)
    assert found.notes == ("1 other process held 1.00 GiB of the card all the time",)


def test_a_phase_shorter_than_the_interval_is_read_once(machine):
    """Every phase ends with a reading of its own, however slow the thread is."""
    machine(holding(GIB, (os.getpid(), GIB)))
    sampler = MemorySampler(device_seen(), os.getpid(), interval_seconds=60).start()
    sampler.phase("forward")
    machine.change(holding(2 * GIB, (os.getpid(), 2 * GIB)))
    sampler.phase("backward")
    machine.change(holding(3 * GIB, (os.getpid(), 3 * GIB)))
    found = sampler.stop()

    assert [(phase.phase, phase.process_bytes, phase.num_samples) for phase in found.phases] == [
        ("idle", GIB, 1),
        ("forward", 2 * GIB, 1),
        ("backward", 3 * GIB, 1),
    ]
    assert sampler.stop() is found


def test_it_reads_every_few_milliseconds(machine):
    """In half a second at least twenty readings; the longest gap is the truth about what may have been missed."""
    machine(holding(GIB, (os.getpid(), GIB)))
    sampler = MemorySampler(device_seen(), os.getpid()).start()
    began = time.monotonic()
    wait_until(lambda: sampler._found.num_samples >= 20)
    took, found = time.monotonic() - began, sampler.stop()

    assert found.num_samples >= 20
    assert took / 20 <= found.longest_gap_seconds * 2
    assert 0 < found.longest_gap_seconds <= took + 1


def test_processes_that_come_and_go_are_noticed_and_not_counted(machine):
    """One was there and went, one came and stayed: both are named with their most, and the watched process is told apart from them."""
    machine(holding(3 * GIB, (7, 3 * GIB)))
    sampler = MemorySampler(device_seen(), os.getpid()).start()
    after_a_reading(sampler)
    machine.change(holding(7 * GIB, (os.getpid(), 2 * GIB), (8, 5 * GIB)))
    after_a_reading(sampler)
    machine.change(holding(6 * GIB, (os.getpid(), 2 * GIB), (8, 4 * GIB)))
    found = sampler.stop()

    assert [(other.pid, other.used_bytes, other.came, other.went) for other in found.others] == [
        (8, 5 * GIB, True, False),
        (7, 3 * GIB, False, True),
    ]
    assert found.process_bytes == 2 * GIB
    assert sum("another process" in note and "is not counted" in note for note in found.notes) == 2


def test_others_are_subtracted_where_the_process_is_not_told(machine):
    """Under WDDM the driver does not say what a process holds: what the card holds more than before it, less what the others do."""
    machine(holding(2 * GIB, (7, GIB)))
    sampler = MemorySampler(device_seen()).start()
    sampler.watch(os.getpid())
    machine.change(holding(12 * GIB, (7, 4 * GIB), (os.getpid(), "-")))
    found = sampler.stop()

    assert (found.process_bytes, found.source) == ((12 - 2 - (4 - 1)) * GIB, "nvml_device")
    assert any("what the card holds more than before it" in note for note in found.notes)


def test_processes_that_nobody_lists_are_in_the_difference(machine):
    """Where the list itself is refused, the difference holds them, and that is said."""
    machine(card(memory=f"{A100_TOTAL} {KEPT} {GIB}", processes=NO_PERMISSION))
    sampler = MemorySampler(device_seen(), os.getpid()).start()
    machine.change(card(memory=f"{A100_TOTAL} {KEPT} {3 * GIB}", processes=NO_PERMISSION))
    found = sampler.stop()

    assert (found.process_bytes, found.phases[0].others_bytes) == (2 * GIB, None)
    assert any("Insufficient Permissions" in note and "are in these numbers" in note for note in found.notes)


def test_unified_memory_falls_back_to_what_the_process_says(machine):
    """Not Supported: the device's use is cudaMemGetInfo's, which only the process itself can ask, and the note says so."""
    machine(card(memory=NOT_SUPPORTED, processes=f"{os.getpid()}:{2 * GIB}:-"))
    sampler = MemorySampler(device_seen(), os.getpid()).start()
    sampler.told(free_bytes=70 * GIB, total_bytes=100 * GIB)
    found = sampler.stop()

    assert (found.total_bytes, found.baseline_bytes, found.device_used_bytes) == (100 * GIB, None, 30 * GIB)
    assert (found.process_bytes, found.source) == (2 * GIB, "nvml_process")
    assert any("Not Supported" in note and "cudaMemGetInfo" in note for note in found.notes)


def test_what_nobody_tells_is_none(machine):
    """Neither NVML nor the process says anything: no number is made up."""
    machine(card(memory=NOT_SUPPORTED, processes=NOT_SUPPORTED))
    found = MemorySampler(device_seen(), os.getpid()).start().stop()

    assert (found.total_bytes, found.process_bytes, found.device_used_bytes, found.source) == (None, None, None, None)
    assert any("nobody else told it" in note for note in found.notes)
    assert "nobody tells what this process holds on the card" in found.notes


def test_a_card_that_vanishes_keeps_what_was_seen(machine):
    """GPU_IS_LOST in the middle: the peaks so far stand, nothing is asked again, and it is said."""
    machine(holding(5 * GIB, (os.getpid(), 5 * GIB)))
    sampler = MemorySampler(device_seen(), os.getpid()).start()
    sampler.phase("forward")
    after_a_reading(sampler)
    machine.change(card(memory=LOST, processes=LOST))
    wait_until(lambda: sampler._is_lost)
    sampler.phase("backward")
    found = sampler.stop()

    assert (found.is_lost, found.phase("forward").process_bytes, found.phase("backward")) == (True, 5 * GIB, None)
    assert "the card went away" in found.notes[0]


def test_a_container_sees_the_hosts_numbers(machine):
    """The driver knows the process by the host's number: the only stranger that came and is not in this container's list is it."""
    machine(holding(GIB, (7, GIB)))
    sampler = MemorySampler(device_seen()).start()
    sampler.watch(os.getpid())
    machine.change(holding(4 * GIB, (7, GIB), (PID, 3 * GIB)))
    found = sampler.stop()

    assert (found.process_bytes, [other.pid for other in found.others]) == (3 * GIB, [7])
    assert any("as the host does" in note for note in found.notes)


def test_two_strangers_from_outside_are_not_told_apart(machine):
    """Two came that this container does not see: neither is taken for the process."""
    machine(holding(0))
    sampler = MemorySampler(device_seen(), os.getpid()).start()
    machine.change(holding(4 * GIB, (PID, 3 * GIB), (PID + 1, GIB)))
    found = sampler.stop()

    assert (found.process_bytes, len(found.others), found.source) == (0, 2, "nvml_device")


MIG = card(mig="1 1", parts="2", memory=f"{A100_TOTAL} {KEPT} {9 * GIB}", processes=f"11:{GIB}:1 {os.getpid()}:{8 * GIB}:2")
FIRST = part(0, 0, "MIG 3g", f"{40 * GIB} 0 {GIB}", 1)
SECOND = part(0, 1, "MIG 4g", f"{40 * GIB} 0 {8 * GIB}", 2)


def test_a_mig_instance_is_read_by_its_own_handle(machine, monkeypatch):
    """The instance's memory, not the card's; where instances are not told who runs, the card's list is read for that instance alone."""
    machine(MIG, FIRST, SECOND)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", SECOND["0.1.uuid"])
    found = MemorySampler(device_seen(), os.getpid()).start().stop()

    assert (found.total_bytes, found.device_used_bytes) == (40 * GIB, 8 * GIB)
    assert (found.process_bytes, found.others) == (8 * GIB, ())


def test_an_instance_that_tells_its_processes_is_believed(machine):
    """Rows of the instance's own handle count before the card's."""
    machine(MIG, FIRST | {"0.0.processes": f"{os.getpid()}:{3 * GIB}:1"}, SECOND)
    found = MemorySampler(device_seen(), os.getpid()).start().stop()

    assert found.process_bytes == 3 * GIB


@pytest.mark.parametrize(
    ("setting", "ordinal", "uuid", "name"),
    [
        (None, 1, None, "1"),
        ("1,0", 0, None, "1"),
        ("GPU-1a1b", 0, None, "1"),
        ("1,0", 0, "0a1b2c3d-0000-1111-2222-333344445555", "0"),
        (None, 0, "GPU-1a1b2c3d-0000-1111-2222-333344445555", "1"),
    ],
)
def test_devices_of_cuda_map_to_their_cards(machine, monkeypatch, setting, ordinal, uuid, name):
    """By ordinal under CUDA_VISIBLE_DEVICES, or by what CUDA says its UUID is; the reading is of that card and no other."""
    used = {"0": 2 * GIB, "1": 3 * GIB}
    machine(*(card(int(n), T4, memory=f"{15 * GIB} 0 {nbytes}") for n, nbytes in used.items()))
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    found = MemorySampler(device_seen(ordinal, uuid=uuid), 1).start().stop()

    assert found.device_used_bytes == used[name]


def test_a_card_that_got_another_number_is_found_by_its_uuid(machine):
    """Card 0 went away between the look and the sampling, and card 1 is now the first: the same card is read."""
    machine(card(0, T4), card(1, T4, memory=f"{15 * GIB} 0 {GIB}"))
    seen = device_seen(1)
    machine.change(card(0, T4, uuid=seen.card.uuid, memory=f"{15 * GIB} 0 {GIB}"))
    found = MemorySampler(seen, 1).start().stop()

    assert found.device_used_bytes == GIB


def test_a_card_that_is_gone_is_refused(machine):
    """Its UUID is nobody's: an error that names it."""
    machine(card())
    seen = device_seen()
    machine.change(card(uuid="GPU-ffffffff-0000-1111-2222-333344445555"))

    with pytest.raises(UnavailableError, match="no longer knows NVIDIA A100"):
        MemorySampler(seen)


def test_an_instance_that_is_gone_is_refused(machine):
    """MIG was reconfigured: the instance's UUID is nobody's."""
    machine(MIG, FIRST)
    seen = device_seen()
    machine.change(MIG, FIRST | {"0.0.uuid": "MIG-other"})

    with pytest.raises(UnavailableError, match="no longer knows the MIG instance MIG-0f0e1d2c"):
        MemorySampler(seen)


def test_no_such_device_is_none(machine):
    """An ordinal or UUID that CUDA has not."""
    machine(card())

    assert device_seen(1) is None
    assert device_seen(uuid="ffff") is None


@pytest.mark.parametrize(("code", "message"), [(NOT_LOADED, "kernel module"), (MISMATCH, "differ in version")])
def test_a_driver_that_does_not_answer_is_an_error(machine, code, message):
    """No driver, or one whose halves differ: said before anything starts."""
    machine(card(), init=code)

    with pytest.raises(UnavailableError, match=message):
        device_seen()


def test_a_driver_that_breaks_between_look_and_start_is_an_error(machine):
    """An update of the driver meanwhile: the sampler refuses with the reason, and leaves no thread."""
    machine(card())
    seen = device_seen()
    machine.change(card(), init=MISMATCH)

    with pytest.raises(UnavailableError, match="differ in version"):
        MemorySampler(seen)


def test_a_gauge_lets_go_of_the_driver(machine):
    """NVML is shut down as often as it was opened."""
    machine(card())
    shut = []
    import pynvml

    original = pynvml.nvmlShutdown
    pynvml.nvmlShutdown = lambda: (shut.append(1), original())
    try:
        nvml.Gauge(nvml.read().cards[0]).close()
    finally:
        pynvml.nvmlShutdown = original

    assert len(shut) == 2
