"""What this machine has: its cards, who uses them, its own memory. What nobody says is None."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

from planner.units import KIB
from planner.value import Value

NO_BYTES = "0 bytes"
"""Why the memory of a card is not known: what was said is nothing."""

_HOST_MEMORY = Path("/proc/meminfo")


class Memory(Value):
    """
    Memory of a card, an instance or the host, in bytes.

    Attributes:
        total_bytes: What processes can get: without what the driver keeps.
        used_bytes: What is taken now.
        free_bytes: What is not.
        reserved_bytes: What the driver keeps, beyond the total; 0 where it does not say (before 510).
    """

    total_bytes: int
    used_bytes: int
    free_bytes: int
    reserved_bytes: int = 0


class Process(Value):
    """
    A process that holds memory of a card.

    Attributes:
        pid: Its id. In a container it may be the host's.
        name: The program without its folder; None where nobody says.
        used_bytes: What it holds; None where the driver does not know (Windows, WSL).
        kind: `compute` or `graphics`.
        is_own: Whether it is this user's; None where that cannot be seen.
        gpu_instance: The MIG instance that it runs on, if any.
    """

    pid: int
    name: str | None
    used_bytes: int | None
    kind: Literal["compute", "graphics"]
    is_own: bool | None
    gpu_instance: int | None


class Instance(Value):
    """
    A part of a card in MIG mode, as CUDA sees it.

    Attributes:
        index: Its number on its card.
        uuid: What CUDA_VISIBLE_DEVICES calls it.
        name: As the driver spells it, such as `NVIDIA A100-SXM4-40GB MIG 3g.20gb`.
        memory: None where NVML does not say.
        gpu_instance: The id of the part of the memory.
        compute_instance: The id of the part of the processors in it.
    """

    index: int
    uuid: str | None
    name: str | None
    memory: Memory | None
    gpu_instance: int | None
    compute_instance: int | None


class Card(Value):
    """
    A card as NVML sees it; None is what it did not answer.

    Attributes:
        index: NVML's number, in the order of PCI buses.
        uuid: What CUDA_VISIBLE_DEVICES may call it.
        name: As the driver spells it.
        memory: Of the whole card.
        compute_capability: (major, minor).
        mig: Whether it is in MIG mode: CUDA sees its instances then, never the card. None where it cannot be.
        mig_pending: The same after the next reset.
        instances: Its MIG instances.
        ecc: Whether memory errors are corrected.
        ecc_pending: The same after the next reset.
        driver_model: `WDDM`, `TCC` or `MCDM` under Windows.
        processes: Who holds its memory.
        unanswered: What was asked in vain -> NVML's reason.
        is_lost: Whether it went away while it was read.
    """

    index: int
    uuid: str | None = None
    name: str | None = None
    memory: Memory | None = None
    compute_capability: tuple[int, int] | None = None
    mig: bool | None = None
    mig_pending: bool | None = None
    instances: tuple[Instance, ...] = ()
    ecc: bool | None = None
    ecc_pending: bool | None = None
    driver_model: str | None = None
    processes: tuple[Process, ...] | None = None
    unanswered: dict[str, str] = field(default_factory=dict)
    is_lost: bool = False

    @property
    def is_unified(self) -> bool:
        """
        Whether it has no memory of its own and uses the host's: GB10, Jetson.

        Source:
            NVML answers Not Supported, or no bytes at all, there (DGX Spark known issues, "nvidia-smi reports memory usage not supported";
            nvtop pull request 411).
        """
        return self.unanswered.get("memory") in ("Not Supported", NO_BYTES) and not self.mig


class Machine(Value):
    """
    What NVML knows of this machine.

    Attributes:
        driver: The driver's version.
        cuda: The newest (major, minor) of CUDA that the driver runs.
        cards: In NVML's order.
        unanswered: What was asked in vain of the driver itself -> NVML's reason.
    """

    driver: str | None
    cuda: tuple[int, int] | None
    cards: tuple[Card, ...]
    unanswered: dict[str, str] = field(default_factory=dict)


def host_memory() -> Memory | None:
    """The host's memory, of which what is available counts as free; None where Linux does not tell."""
    try:
        rows = dict(row.split(":", 1) for row in _HOST_MEMORY.read_text(encoding="utf-8").splitlines())
        total, free = (int(rows[name].split()[0]) * KIB for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return Memory(total, total - free, free)
