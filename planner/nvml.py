"""
NVIDIA's management library, through pynvml: nobody else opens it.

It answers per call: what it does not answer is None, with its reason beside it. No CUDA context is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from planner import driver
from planner.errors import UnavailableError
from planner.hardware import NO_BYTES, Card, Instance, Machine, Memory, Process
from planner.value import NamedTuple

WSL_FILE = "/dev/dxg"
"""The card as Windows lends it to WSL."""

_KERNEL_MODULE = Path("/proc/driver/nvidia/version")
# NVML's number for an instance where there is none, and the driver models of Windows: NVML_DRIVER_WDDM, _WDM (that is TCC), _MCDM.
_NO_INSTANCE = 0xFFFFFFFF
_DRIVER_MODELS = {0: "WDDM", 1: "TCC", 2: "MCDM"}
_TRIES = 3

T = TypeVar("T")


def read(*, thorough: bool = True) -> Machine:
    """
    Ask NVML for everything.

    Args:
        thorough: Whether to ask also what no estimate needs: ECC, driver model, processes.

    Raises:
        UnavailableError: There is no NVML to ask: no package, no library, no driver, or they do not go together. The hint says what
            to do.
    """
    with _opened() as pynvml:
        found = _Questions(pynvml)
        version = found.ask("driver", pynvml.nvmlSystemGetDriverVersion)
        cuda = found.ask("cuda", pynvml.nvmlSystemGetCudaDriverVersion_v2)
        count = found.ask("cards", pynvml.nvmlDeviceGetCount) or 0
        cards = tuple(_card(pynvml, index, thorough) for index in range(count))
        return Machine(version, None if cuda is None else (cuda // 1000, cuda % 1000 // 10), cards, found.unanswered)


def driver_version() -> str | None:
    """
    The driver's version; None where it does not say.

    Raises:
        UnavailableError: There is no NVML to ask.
    """
    with _opened() as pynvml:
        return _Questions(pynvml).ask("driver", pynvml.nvmlSystemGetDriverVersion)


class _Questions:
    """Calls of NVML, and why some were not answered."""

    def __init__(self, pynvml: Any) -> None:
        self.pynvml = pynvml
        self.unanswered: dict[str, str] = {}
        self.codes: dict[str, int] = {}

    @property
    def met_loss(self) -> bool:
        """Whether a card went away between two questions."""
        return self.pynvml.NVML_ERROR_GPU_IS_LOST in self.codes.values()

    def ask(self, what: str, call: Callable[..., T], *arguments: Any, silent: bool = False) -> T | None:
        """The answer, or None; the reason is kept unless nobody wants to know."""
        try:
            answer = call(*arguments)
        except self.pynvml.NVMLError as error:
            self.codes[what] = error.value
            if not silent:
                self.unanswered[what] = str(error)
        except UnicodeDecodeError:
            self.unanswered[what] = "not readable"
        else:
            self.codes.pop(what, None)
            self.unanswered.pop(what, None)
            return answer
        return None


@contextmanager
def _opened() -> Iterator[Any]:
    """The module pynvml, between init and shutdown."""
    try:
        import pynvml
    except ImportError as error:
        raise UnavailableError(
            "the Python package nvidia-ml-py is not installed, so the driver cannot be asked", hint="pip install nvidia-ml-py"
        ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        message, hint = _why_closed(pynvml, error)
        raise UnavailableError(message, hint=hint) from error
    try:
        yield pynvml
    finally:
        with suppress(pynvml.NVMLError):  # a driver that went away meanwhile
            pynvml.nvmlShutdown()


def _why_closed(pynvml: Any, error: Any) -> tuple[str, str]:
    """Why NVML cannot be opened, and what to do."""
    if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        if any(map(os.path.exists, driver.FILES)):
            return (
                "an NVIDIA driver runs here, but its library libnvidia-ml.so.1 is not found",
                "in a container: start it with --gpus all, or NVIDIA_DRIVER_CAPABILITIES=compute,utility",
            )
        return "there is no NVIDIA driver on this machine", "on a machine with an NVIDIA card, install NVIDIA's driver"
    if error.value == pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return (
            "the driver's library is installed, but its kernel module is not loaded",
            "sudo modprobe nvidia, or restart; in a container, start it with --gpus all",
        )
    if error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return f"the driver's library and its kernel module differ in version{_versions(pynvml)}: no CUDA program runs", (
            "restart, so that the kernel loads the version that was installed last"
        )
    if error.value == pynvml.NVML_ERROR_NO_PERMISSION:
        return "this user may not talk to the NVIDIA driver", "check the rights of /dev/nvidiactl and /dev/nvidia0"
    return f"the NVIDIA driver refuses to answer: {error}", "nvidia-smi says the same? restart, or reset the card"


def _versions(pynvml: Any) -> str:
    """The two versions, where they can be read."""
    library = _Questions(pynvml).ask("library", pynvml.nvmlSystemGetNVMLVersion)
    module = ""
    with suppress(OSError):
        words = _KERNEL_MODULE.read_text(encoding="utf-8", errors="replace").split()
        module = next((word for word in words if word.count(".") and word.replace(".", "").isdecimal()), "")
    told = [f"library {library}" if library else "", f"kernel module {module}" if module else ""]
    return f" ({', '.join(filter(None, told))})" if any(told) else ""


class Row(NamedTuple):
    """A process on a card, and what it holds there in bytes: None where the driver does not know."""

    pid: int
    used_bytes: int | None


class Reading(NamedTuple):
    """
    What a card, or an instance of one, holds at a moment.

    Attributes:
        memory: Of all processes; None where NVML does not say.
        rows: Who holds it; None where NVML does not say.
        unanswered: What was asked in vain -> NVML's reason.
        is_lost: Whether the card went away.
    """

    memory: Memory | None
    rows: tuple[Row, ...] | None
    unanswered: dict[str, str]
    is_lost: bool


class Gauge:
    """
    One card, or one MIG instance, read again and again: NVML stays open from here to `close`.

    Args:
        card: Which; it is found by its UUID where it has one, since numbers change when another card goes away.
        instance: The part of it, if that is what is used.

    Raises:
        UnavailableError: There is no NVML to ask, or it no longer knows the card.
    """

    def __init__(self, card: Card, instance: Instance | None = None) -> None:
        with ExitStack() as stack:
            self._pynvml = stack.enter_context(_opened())
            self._instance = instance
            self._card_handle = self._find(card)
            self._handle = self._card_handle if instance is None else self._find_part(instance)
            self._closing = stack.pop_all()

    def read(self) -> Reading:
        """What it holds now; takes about a millisecond."""
        found = _Questions(self._pynvml)
        memory = _memory(found, self._handle)
        rows = self._rows(found, self._handle)
        if rows is None and self._instance is not None and not found.met_loss:  # not told of instances, but of their card
            rows = self._rows(found, self._card_handle)
        return Reading(memory, rows, found.unanswered, found.met_loss)

    def close(self) -> None:
        """Let go of NVML."""
        self._closing.close()

    def _find(self, card: Card) -> Any:
        found = _Questions(self._pynvml)
        count = found.ask("cards", self._pynvml.nvmlDeviceGetCount) or 0
        for index in sorted(range(count), key=lambda index: index != card.index):
            handle = found.ask("handle", self._pynvml.nvmlDeviceGetHandleByIndex, index)
            uuid = None if handle is None else found.ask("uuid", self._pynvml.nvmlDeviceGetUUID, handle)
            if handle is not None and (uuid == card.uuid if card.uuid else index == card.index):
                return handle
        raise UnavailableError(
            f"the driver no longer knows {card.name or f'card {card.index}'}{f' ({card.uuid})' if card.uuid else ''}",
            hint="qplan doctor shows what is there; a card that went away comes back with a reset",
        )

    def _find_part(self, instance: Instance) -> Any:
        found = _Questions(self._pynvml)
        part = found.ask("instance", self._pynvml.nvmlDeviceGetMigDeviceHandleByIndex, self._card_handle, instance.index)
        uuid = None if part is None else found.ask("uuid", self._pynvml.nvmlDeviceGetUUID, part)
        if part is None or uuid != instance.uuid:
            raise UnavailableError(
                f"the driver no longer knows the MIG instance {instance.uuid or instance.index}", hint="qplan doctor shows what is there"
            )
        return part

    def _rows(self, found: _Questions, handle: Any) -> tuple[Row, ...] | None:
        """Who computes or draws here; a process that does both is told once."""
        compute = _running(found, "processes", "Compute", handle)
        if compute is None:
            return None
        wanted = None if self._instance is None else self._instance.gpu_instance
        told: dict[int, int | None] = {}
        for row in (*compute, *(_running(found, "graphics_processes", "Graphics", handle) or ())):
            if wanted is None or row.gpuInstanceId in (wanted, _NO_INSTANCE):
                told.setdefault(int(row.pid), None if row.usedGpuMemory is None else int(row.usedGpuMemory))
        return tuple(Row(pid, used) for pid, used in told.items())


def program_of(pid: int) -> str | None:
    """The name of a running program without its folder, as Linux tells it; None where it does not."""
    return _program(None, pid)


def _card(pynvml: Any, index: int, thorough: bool) -> Card:
    """One card, question by question."""
    found = _Questions(pynvml)
    handle = found.ask("handle", pynvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:
        return Card(index, unanswered=found.unanswered, is_lost=found.met_loss)
    mig = found.ask("mig", pynvml.nvmlDeviceGetMigMode, handle, silent=True)
    facts: dict[str, Any] = {
        "uuid": found.ask("uuid", pynvml.nvmlDeviceGetUUID, handle),
        "name": found.ask("name", pynvml.nvmlDeviceGetName, handle),
        "memory": _memory(found, handle),
        "compute_capability": found.ask("compute_capability", pynvml.nvmlDeviceGetCudaComputeCapability, handle),
        "mig": None if mig is None else bool(mig[0]),
        "mig_pending": None if mig is None else bool(mig[1]),
        "instances": _instances(found, handle) if mig and mig[0] else (),
    }
    if thorough:
        ecc = found.ask("ecc", pynvml.nvmlDeviceGetEccMode, handle, silent=True)
        model = found.ask("driver_model", pynvml.nvmlDeviceGetDriverModel, handle, silent=True)
        facts |= {
            "ecc": None if ecc is None else bool(ecc[0]),
            "ecc_pending": None if ecc is None else bool(ecc[1]),
            "driver_model": None if model is None else _DRIVER_MODELS.get(model[0]),
            "processes": _processes(found, handle),
        }
    return Card(index, **facts, unanswered=found.unanswered, is_lost=found.met_loss)


def _memory(found: _Questions, handle: Any) -> Memory | None:
    """Of a card or an instance."""
    pynvml = found.pynvml
    new = found.ask("memory", lambda: pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2))
    if new is not None:
        memory = Memory(int(new.total) - int(new.reserved), int(new.used), int(new.free), int(new.reserved))
    else:  # drivers before 510 have only the first version, whose total leaves the reserved part out
        old = found.ask("memory", pynvml.nvmlDeviceGetMemoryInfo, handle)
        if old is None:
            return None
        memory = Memory(int(old.total), int(old.used), int(old.free))
    if memory.total_bytes:
        return memory
    found.unanswered["memory"] = NO_BYTES
    return None


def _instances(found: _Questions, handle: Any) -> tuple[Instance, ...]:
    """The MIG instances of a card; their numbers may have gaps."""
    pynvml = found.pynvml
    parts = []
    for index in range(found.ask("instances", pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        part = found.ask(f"instance {index}", pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index, silent=True)
        if part is None:
            continue
        own = _Questions(pynvml)  # what an instance does not say is no news about its card
        parts.append(
            Instance(
                index,
                own.ask("uuid", pynvml.nvmlDeviceGetUUID, part),
                own.ask("name", pynvml.nvmlDeviceGetName, part),
                _memory(own, part),
                own.ask("gpu_instance", pynvml.nvmlDeviceGetGpuInstanceId, part),
                own.ask("compute_instance", pynvml.nvmlDeviceGetComputeInstanceId, part),
            )
        )
    return tuple(parts)


def _processes(found: _Questions, handle: Any) -> tuple[Process, ...] | None:
    """Who computes or draws on a card, those with the most memory first; a process that does both is told once."""
    pynvml = found.pynvml
    compute = _running(found, "processes", "Compute", handle)
    if compute is None:
        return None
    graphics = _running(found, "graphics_processes", "Graphics", handle) or []
    own = _Questions(pynvml)
    told: dict[tuple[int, int], Process] = {}
    kinds: tuple[tuple[Literal["compute", "graphics"], list[Any]], ...] = (("compute", compute), ("graphics", graphics))
    for kind, rows in kinds:
        for row in rows:
            instance = None if row.gpuInstanceId == _NO_INSTANCE else int(row.gpuInstanceId)
            name = own.ask("name", pynvml.nvmlSystemGetProcessName, row.pid)
            used = None if row.usedGpuMemory is None else int(row.usedGpuMemory)
            process = Process(int(row.pid), _program(name, row.pid), used, kind, _is_own(row.pid), instance)
            told.setdefault((process.pid, row.gpuInstanceId), process)
    return tuple(sorted(told.values(), key=lambda process: (-(process.used_bytes or 0), process.pid)))


def _running(found: _Questions, what: str, kind: str, handle: Any) -> list[Any] | None:
    """The rows of NVML: it is asked again where more processes came than there was room for."""
    pynvml = found.pynvml
    names = (f"nvmlDeviceGet{kind}RunningProcesses_{version}" for version in ("v3", "v2"))
    calls = [getattr(pynvml, name) for name in names if hasattr(pynvml, name)]  # drivers before 510 lack the first, pynvml 12 the second
    for _ in range(_TRIES):
        for call in calls:
            rows: list[Any] | None = found.ask(what, call, handle)
            if rows is not None:
                return rows
            if found.codes.get(what) != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                break
        if found.codes.get(what) != pynvml.NVML_ERROR_INSUFFICIENT_SIZE:
            break
    return None


def _program(name: str | None, pid: int) -> str | None:
    """The name of a program without its folder and arguments, from NVML or from Linux."""
    if not name:
        with suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] or None if name else None


def _is_own(pid: int) -> bool | None:
    """Whether a process is this user's; None where there is none of that id to look at."""
    if not hasattr(os, "getuid"):
        return None
    with suppress(OSError):
        return Path(f"/proc/{pid}").stat().st_uid == os.getuid()
    return None
