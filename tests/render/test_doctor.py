"""The screen of `qplan doctor`, letter by letter."""

from __future__ import annotations

import pytest

from planner import nvml, stack
from planner.doctor import diagnose
from planner.render import doctor
from planner.render.terminal import Terminal
from planner.stack import LATEST
from planner.units import GIB, MIB
from tests.nvml_stand_in import A100, A100_TOTAL, LOST, MISMATCH, NO_PERMISSION, NOT_LOADED, NOT_SUPPORTED, T4, T4_TOTAL, card, part

OWN, OTHERS, UNSEEN = 4194305, 4194306, 4194307  # more than Linux gives out
NAMES = {f"pid.{OWN}": "/opt/venv/bin/python", f"pid.{OTHERS}": "/usr/lib/xorg/Xorg"}


def two_cards(machine) -> dict[str, str]:
    """A used A100 and a T4 with ECC, numbered the other way round; allocator settings."""
    used = f"{A100_TOTAL} {430 * MIB} {9 * GIB}"
    processes = f"{OWN}:{7 * GIB}:- {UNSEEN}:{GIB}:-"
    machine(
        card(0, A100, memory=used, ecc="1 1", mig="0 0", processes=processes, graphics=f"{OTHERS}:{300 * MIB}:-"),
        card(1, T4, memory=f"{T4_TOTAL} {430 * MIB} 0", ecc="1 0"),
        **NAMES,
    )
    conf = "expandable_segments:True,max_split_size_mb:128,roundup_power2_divisions:4"
    return {"CUDA_VISIBLE_DEVICES": "1,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PYTORCH_CUDA_ALLOC_CONF": conf}


def mig(machine) -> dict[str, str]:
    """Two instances, of which CUDA sees the second; the card itself tells nothing to this user."""
    machine(
        card(mig="1 1", parts="7", memory=NO_PERMISSION, ecc="1 1", processes=f"{OWN}:{GIB}:2"),
        part(0, 0, f"{A100} MIG 1g.10gb", f"{10 * GIB} {MIB} 0", 9),
        part(0, 1, f"{A100} MIG 3g.40gb", f"{40 * GIB} {MIB} {GIB}", 2),
        **NAMES,
    )
    return {"CUDA_VISIBLE_DEVICES": "MIG-1f0e1d2c-aaaa-bbbb-cccc-ddddeeeeffff"}


def unified(machine) -> dict[str, str]:
    """As a DGX Spark answers."""
    machine(card(name="NVIDIA GB10", memory=NOT_SUPPORTED, capability="12 1", processes=f"{OWN}:{2 * GIB}:-"), **NAMES)
    return {}


def windows(machine) -> dict[str, str]:
    """WDDM: nobody knows what a process holds."""
    machine(card(name="NVIDIA GeForce RTX 4090", model="0 0", processes=f"{OWN}:-:-"), **NAMES)
    return {}


def lost(machine) -> dict[str, str]:
    """The only card goes away while it is read, and a setting is refused."""
    machine(card(processes=LOST))
    return {"PYTORCH_ALLOC_CONF": "expandable_segments:yes"}


def mismatch(machine) -> dict[str, str]:
    """An upgrade without a restart."""
    machine(init=MISMATCH)
    return {"CUDA_VISIBLE_DEVICES": "0"}


def no_driver(machine) -> dict[str, str]:
    """The library alone."""
    machine(init=NOT_LOADED)
    return {}


SCREENS = {screen.__name__: screen for screen in (two_cards, mig, unified, windows, lost, mismatch, no_driver)}


@pytest.fixture(autouse=True)
def _known(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 127600748 kB\nMemAvailable: 118566368 kB\n")
    monkeypatch.setattr("planner.hardware._HOST_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(nvml, "_is_own", {OWN: True, OTHERS: False}.get)
    monkeypatch.setattr(stack, "_installed", lambda: dict(LATEST.versions))


@pytest.mark.parametrize("name", SCREENS)
def test_the_screen_of_each_machine(machine, golden, name):
    """At 80 columns, no line longer."""
    lines = doctor.lines(diagnose(SCREENS[name](machine)), Terminal())

    assert [line for line in lines if len(line) > 80] == []
    golden(f"doctor-{name.replace('_', '-')}", "\n".join(line.rstrip() for line in lines) + "\n")


def test_a_stack_that_is_not_complete_is_told(machine, monkeypatch):
    """What is installed, and what plans take instead."""
    machine(init=NOT_LOADED)
    monkeypatch.setattr(stack, "_installed", lambda: {"torch": "2.6.0"})
    text = "\n".join(doctor.lines(diagnose({}), Terminal()))

    assert f"torch          2.6.0; planned as {LATEST.versions['torch']}" in text
    assert f"trl            not installed; planned as {LATEST.versions['trl']}" in text
    assert 'pip install "qplan[torch]"' in text


def test_names_of_programs_move_no_cursor(machine):
    """What a process calls itself is shown without control characters, and cut."""
    machine(card(processes=f"{UNSEEN}:{GIB}:-"), **{f"pid.{UNSEEN}": "evil\x1b[31m" + "x" * 200})
    lines = doctor.lines(diagnose({}), Terminal())

    assert all(line.isprintable() and len(line) <= 80 for line in lines)
    assert any("evil\\x1b[31m" in line for line in lines)
