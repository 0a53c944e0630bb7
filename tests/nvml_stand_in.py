"""
Machines with NVIDIA cards for tests: the real pynvml over a libnvidia-ml.so.1 that is compiled from tests/nvml_stand_in.c.

A machine is a dict of answers; a list answers one time after the other, the last from then on.
"""

from __future__ import annotations

import shutil
import subprocess
from ctypes import CDLL
from pathlib import Path

import pynvml
import pytest

from planner import driver, nvml
from planner.units import GIB, MIB

SOURCE = Path(__file__).with_name("nvml_stand_in.c")
LIBRARY = "libnvidia-ml.so.1"

Answers = dict[str, str | list[str]]
T4, A100, A100_TOTAL, T4_TOTAL = "Tesla T4", "NVIDIA A100-SXM4-80GB", 81920 * MIB, 15360 * MIB
NOT_SUPPORTED, NO_PERMISSION, NOT_LOADED, LOST, MISMATCH, UNKNOWN = (f"error {code}" for code in (3, 4, 9, 15, 18, 999))


def compiled(folder: Path, *flags: str) -> Path:
    """The library, built into a folder; tests that need it are skipped where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("the stand-in for NVML needs a C compiler")
    path = folder / LIBRARY
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", *flags, "-o", str(path), str(SOURCE)], check=True)
    return path


def card(index: int = 0, name: str = A100, **changes: str | list[str] | None) -> Answers:
    """A card with 430 MiB kept by the driver; None leaves an answer out."""
    total, capability = {A100: (A100_TOTAL, "8 0"), T4: (T4_TOTAL, "7 5")}.get(name, (24 * GIB, "8 9"))
    answers = {
        "handle": "there",
        "name": name,
        "uuid": f"GPU-{index}a1b2c3d-0000-1111-2222-333344445555",
        "memory": f"{total} {430 * MIB} 0",
        "capability": capability,
        "processes": "",
        "graphics": "",
        **changes,
    }
    return {f"{index}.{what}": value for what, value in answers.items() if value is not None}


def part(index: int, number: int, name: str, memory: str, instance: int) -> Answers:
    """A MIG instance of a card."""
    answers = {
        "uuid": f"MIG-{number}f0e1d2c-aaaa-bbbb-cccc-ddddeeeeffff",
        "name": name,
        "memory": memory,
        "gpu_instance": str(instance),
        "compute_instance": "0",
    }
    return {f"{index}.{number}.{what}": value for what, value in answers.items()}


def written(*answers: Answers, **changes: str | list[str]) -> str:
    """A machine with these cards, as the stand-in reads it."""
    merged: Answers = {key: value for given in answers for key, value in given.items()}
    count = len({key.split(".")[0] for key in merged if key.split(".")[0].isdecimal()})
    machine = {"driver": "580.95.05", "cuda": "13000", "library": "580.95.05", "count": str(count)} | merged | changes
    rows = [(key, line) for key, value in machine.items() for line in ([value] if isinstance(value, str) else value)]
    return "".join(f"{key} {line}\n" for key, line in rows)


class Machine:
    """Puts a machine under this process's pynvml, which loads the stand-in as it would load the driver's library."""

    def __init__(self, library: Path, old: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.library, self.old, self.answers, self.monkeypatch = library, old, folder / "nvml.txt", monkeypatch
        monkeypatch.setattr(driver, "FILES", ())
        monkeypatch.setattr(nvml, "WSL_FILE", str(folder / "dxg"))
        monkeypatch.setattr(nvml, "_KERNEL_MODULE", folder / "version")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)

    def __call__(self, *answers: Answers, old: bool = False, **changes: str | list[str]) -> None:
        self.answers.write_text(written(*answers, **changes))
        self.monkeypatch.setenv("STAND_IN_NVML", str(self.answers))
        self.load(self.old if old else self.library)

    def change(self, *answers: Answers, **changes: str | list[str]) -> None:
        """Let the machine answer otherwise from now on, while somebody may be asking."""
        after = self.answers.with_suffix(".new")
        after.write_text(written(*answers, **changes))
        after.replace(self.answers)

    def load(self, library: Path) -> None:
        """Let pynvml find that file under the library's name."""
        self.monkeypatch.setattr(pynvml, "nvmlLib", None)
        self.monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        self.monkeypatch.setattr(pynvml, "CDLL", lambda name: CDLL(str(library)))
