"""NVML through the real pynvml, over a library that answers what each test says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from planner import driver, nvml
from planner.errors import UnavailableError
from planner.hardware import Instance, Memory
from planner.units import GIB, MIB
from tests.nvml_stand_in import (
    A100,
    A100_TOTAL,
    LOST,
    MISMATCH,
    NO_PERMISSION,
    NOT_LOADED,
    NOT_SUPPORTED,
    T4,
    T4_TOTAL,
    UNKNOWN,
    card,
    part,
)


def test_a_machine_is_read_as_it_answers(machine):
    """Versions, two cards in their order, every field."""
    machine(card(0, T4, ecc="1 0", processes=f"7:{GIB}:-"), card(1, mig="0 1"), cuda="12080", **{"pid.7": "/opt/venv/bin/python"})
    found = nvml.read()
    first, second = found.cards

    assert (found.driver, found.cuda) == ("580.95.05", (12, 8))
    assert first.memory == Memory(T4_TOTAL - 430 * MIB, 0, T4_TOTAL - 430 * MIB, 430 * MIB)
    assert (first.index, first.name, first.compute_capability) == (0, T4, (7, 5))
    assert (first.ecc, first.ecc_pending, first.mig) == (True, False, None)
    assert [(process.pid, process.name, process.used_bytes, process.kind) for process in first.processes] == [(7, "python", GIB, "compute")]
    assert (second.uuid, second.mig, second.mig_pending, second.ecc) == ("GPU-1a1b2c3d-0000-1111-2222-333344445555", False, True, None)
    assert (second.processes, second.unanswered, second.is_lost) == ((), {}, False)


def test_mig_instances_are_read_across_gaps(machine):
    """Instances 0 and 2 of seven; what one of them does not say is None."""
    quiet = {**part(0, 2, "", "", 5), "0.2.memory": NO_PERMISSION, "0.2.name": NO_PERMISSION}
    machine(card(mig="1 1", parts="7", memory=NO_PERMISSION), part(0, 0, f"{A100} MIG 1g.10gb", f"{10 * GIB} {MIB} {GIB}", 9), quiet)
    (found,) = nvml.read().cards

    assert found.instances[0] == Instance(
        0, "MIG-0f0e1d2c-aaaa-bbbb-cccc-ddddeeeeffff", f"{A100} MIG 1g.10gb", Memory(10 * GIB - MIB, GIB, 9 * GIB - MIB, MIB), 9, 0
    )
    assert (found.instances[1].index, found.instances[1].name, found.instances[1].memory) == (2, None, None)
    assert found.unanswered == {"memory": "Insufficient Permissions"}
    assert not found.is_unified


def test_a_card_in_mig_mode_shares_no_memory_with_the_host(machine):
    """Whatever it says of its own."""
    machine(card(mig="1 1", parts="1", memory=NOT_SUPPORTED))

    assert not nvml.read().cards[0].is_unified


@pytest.mark.parametrize("memory", [NOT_SUPPORTED, "0 0 0"])
def test_a_card_that_tells_no_memory_shares_the_hosts(machine, memory):
    """GB10 answers Not Supported, other drivers nothing; everything else is read."""
    machine(card(name="NVIDIA GB10", memory=memory, capability="12 1", processes=f"8:{2 * GIB}:-"))
    (found,) = nvml.read().cards

    assert (found.memory, found.is_unified, found.compute_capability) == (None, True, (12, 1))
    assert found.processes[0].used_bytes == 2 * GIB


def test_unsupported_calls_are_told_with_their_reason(machine):
    """NVML's own words, and everything else is read."""
    machine(card(uuid=NOT_SUPPORTED, processes=NOT_SUPPORTED, capability=UNKNOWN), cuda=NOT_SUPPORTED)
    found = nvml.read()

    assert (found.cuda, found.cards[0].processes, found.cards[0].uuid) == (None, None, None)
    assert found.cards[0].unanswered == {"uuid": "Not Supported", "compute_capability": "Unknown Error", "processes": "Not Supported"}
    assert found.cards[0].memory is not None


@pytest.mark.parametrize("what", ["handle", "uuid", "memory", "mig", "processes", "graphics"])
def test_a_card_that_vanishes_is_told_and_the_others_are_read(machine, what):
    """At whichever question it goes away."""
    machine(card(0, **{what: LOST}), card(1, T4))
    found = nvml.read()

    assert [card.is_lost for card in found.cards] == [True, False]
    assert found.cards[1].name == T4


def test_processes_may_come_between_two_calls(machine):
    """The list is asked for first by its length: where too many came since, it is asked for again, and gone ones are gone."""
    few, many = f"1:{MIB}:-", " ".join(f"{pid}:{pid * MIB}:-" for pid in range(1, 10))
    machine(card(processes=[few, many, many, many]))
    more = nvml.read().cards[0].processes
    machine(card(processes=[many, ""]))

    assert [process.pid for process in more] == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert nvml.read().cards[0].processes == ()


def test_processes_that_never_stop_coming_are_not_told(machine):
    """Three times is enough."""
    lists = [" ".join(f"{pid}:1:-" for pid in range(1, count)) for count in (2, 40, 3, 60, 4, 90, 5, 200)]
    machine(card(processes=lists))
    (found,) = nvml.read().cards

    assert (found.processes, found.unanswered) == (None, {"processes": "Insufficient Size"})


def test_a_process_is_told_once_a_card_with_what_is_known(machine):
    """Compute before graphics, the largest first; under Windows nobody knows how much; on MIG the instance is told."""
    machine(
        card(processes=f"4194306:-:- 4194305:{GIB}:3", graphics=f"4194306:-:- 4194307:{2 * GIB}:-"),
        **{"pid.4194305": "C:\\Program Files\\Python\\python.exe", "pid.4194307": NO_PERMISSION},
    )
    found = nvml.read().cards[0].processes

    assert [(process.pid, process.kind, process.used_bytes, process.gpu_instance) for process in found] == [
        (4194307, "graphics", 2 * GIB, None),
        (4194305, "compute", GIB, 3),
        (4194306, "compute", None, None),
    ]
    assert [process.name for process in found] == [None, "python.exe", None]
    assert {process.is_own for process in found} == {None}


@pytest.mark.skipif(sys.platform != "linux", reason="owners are read from /proc")
def test_processes_of_this_user_are_known(machine):
    """This one is, the first of all is whoever's it is; a name that NVML does not tell is Linux's."""
    machine(card(processes=f"{os.getpid()}:{GIB}:- 1:1:-"))
    own, first = nvml.read().cards[0].processes

    assert (own.is_own, first.is_own) == (True, Path("/proc/1").stat().st_uid == os.getuid())
    assert own.name == Path("/proc/self/comm").read_text().strip()


def test_a_driver_before_510_is_asked_the_old_way(machine):
    """It lacks the second version of the memory call and the third of the lists of processes; pynvml 12 knows no other of these."""
    machine(card(0, T4, processes=f"1:{GIB}:-"), old=True)
    (found,) = nvml.read().cards
    told = hasattr(pynvml, "nvmlDeviceGetComputeRunningProcesses_v2")

    assert (found.memory.total_bytes, found.memory.reserved_bytes) == (T4_TOTAL - 430 * MIB, 0)
    assert [process.used_bytes for process in found.processes or ()] == ([GIB] if told else [])
    assert found.unanswered == ({} if told else {"processes": "Function Not Found"})


@pytest.mark.parametrize(
    ("init", "says"),
    {
        NOT_LOADED: "its kernel module is not loaded",
        MISMATCH: "differ in version (library 580.95.05, kernel module 575.57.08): no CUDA program runs",
        NO_PERMISSION: "may not talk to the NVIDIA driver",
        UNKNOWN: "refuses to answer: Unknown Error",
        "error 77": "refuses to answer: an error without a name",
    }.items(),
)
def test_a_driver_that_cannot_be_asked_is_told_in_a_sentence(machine, tmp_path, init, says):
    """What is wrong, and what to do."""
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  575.57.08  Tue\nGCC version: 12\n")
    machine(card(), init=init)
    with pytest.raises(UnavailableError) as caught:
        nvml.read()

    assert says in caught.value.message
    assert caught.value.hint


def test_a_mismatch_without_versions_is_still_told(machine):
    """Neither version can be read."""
    machine(init=MISMATCH, library=UNKNOWN)
    with pytest.raises(UnavailableError, match="differ in version: no CUDA program runs"):
        nvml.read()


def test_a_missing_library_is_told_by_what_else_is_there(machine, monkeypatch, tmp_path):
    """Nothing: no driver. Device files: a container without the driver's library. An empty file is no library."""
    (tmp_path / "broken.so").touch()
    machine()
    machine.load(tmp_path / "broken.so")
    with pytest.raises(UnavailableError, match="there is no NVIDIA driver on this machine"):
        nvml.read()
    monkeypatch.setattr(driver, "FILES", (str(tmp_path),))
    with pytest.raises(UnavailableError, match=r"its library libnvidia-ml.so.1 is not found") as caught:
        nvml.read()

    assert "--gpus all" in caught.value.hint


def test_without_the_package_nothing_can_be_asked(monkeypatch):
    """And the command that installs it is told."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(UnavailableError) as caught:
        nvml.read()

    assert caught.value.hint == "pip install nvidia-ml-py"


def test_a_quick_look_asks_no_more_than_a_plan_needs(machine):
    """Neither processes nor ECC."""
    machine(card(ecc="1 1", processes=UNKNOWN))
    (found,) = nvml.read(thorough=False).cards

    assert (found.ecc, found.processes, found.unanswered) == (None, None, {})
    assert found.memory.total_bytes == A100_TOTAL - 430 * MIB


def test_the_library_is_found_where_the_driver_installs_it(nvml_libraries, repository, tmp_path):
    """A process of its own, whose loader finds libnvidia-ml.so.1 on its path."""
    from tests.nvml_stand_in import written

    (tmp_path / "nvml.txt").write_text(written(card(0, T4)))
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(nvml_libraries[0].parent),
        "STAND_IN_NVML": str(tmp_path / "nvml.txt"),
        "PYTHONPATH": str(repository),
    }
    code = "from planner import nvml; print(*(card.name for card in nvml.read().cards))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout == f"{T4}\n"
