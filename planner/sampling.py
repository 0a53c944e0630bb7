"""
What a training process holds on a card while it runs: NVML asked every few milliseconds, from before it starts to its end.

What NVML does not tell, the process itself may (`told`, from cudaMemGetInfo); what nobody tells is None, and a note says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from time import perf_counter
from typing import Any, Literal

from planner import nvml
from planner.hardware import Memory
from planner.units import human
from planner.value import Value
from planner.visible import VARIABLE, Seen, visible

INTERVAL_SECONDS = 0.005
"""Between two readings. What a process holds changes with cudaMalloc alone, which is rare after the first step."""

IDLE = "idle"
"""The phase before any was told."""

Source = Literal["nvml_process", "nvml_device", "cuda_mem_get_info"]


@dataclass
class PhaseSample:
    """
    The most that was seen in one phase, in bytes; None is what nobody told.

    Attributes:
        phase: As it was told.
        process_bytes: What the watched process held: context, libraries, and all that torch reserved.
        device_used_bytes: What all processes held together.
        others_bytes: What the others held.
        num_samples: Readings that fell into it.
    """

    phase: str
    process_bytes: int | None = None
    device_used_bytes: int | None = None
    others_bytes: int | None = None
    num_samples: int = 0


@dataclass
class Other:
    """
    Another process on the card.

    Attributes:
        pid: Its id.
        name: The program; None where nobody says.
        used_bytes: The most that it held; None where the driver does not know.
        came: Whether it was not there at the beginning.
        went: Whether it was not there at the end.
    """

    pid: int
    name: str | None
    used_bytes: int | None
    came: bool
    went: bool = False


class Samples(Value):
    """
    What was seen.

    Attributes:
        total_bytes: Of the card; None where nobody told.
        baseline_bytes: What all processes held before the watched one; None where nobody told.
        source: Where `process_bytes` come from; None where they could not be told.
        phases: In the order in which they first came.
        others: Other processes that were seen on the card.
        num_samples: Readings.
        longest_gap_seconds: The longest time without one: what came and went within it was not seen.
        is_lost: Whether the card went away meanwhile.
        notes: What could not be told as usual, a sentence each.
    """

    total_bytes: int | None
    baseline_bytes: int | None
    source: Source | None
    phases: tuple[PhaseSample, ...]
    others: tuple[Other, ...] = ()
    num_samples: int = 0
    longest_gap_seconds: float = 0.0
    is_lost: bool = False
    notes: tuple[str, ...] = ()

    @property
    def process_bytes(self) -> int | None:
        """The most that the watched process held; None where nobody told."""
        return _most(phase.process_bytes for phase in self.phases)

    @property
    def device_used_bytes(self) -> int | None:
        """The most that all processes held together; None where nobody told."""
        return _most(phase.device_used_bytes for phase in self.phases)

    def phase(self, name: str) -> PhaseSample | None:
        """What was seen in one phase."""
        return next((phase for phase in self.phases if phase.phase == name), None)


def device_seen(ordinal: int = 0, *, uuid: str | None = None, environment: Mapping[str, str] | None = None) -> Seen | None:
    """
    What NVML calls a device of CUDA.

    Args:
        ordinal: The n of `cuda:n`.
        uuid: What CUDA says that its UUID is, with or without `GPU-` or `MIG-`: it decides where CUDA may number cards by speed.
        environment: Variables; None for those of this process.

    Returns:
        None where no device has that number or UUID.

    Raises:
        UnavailableError: There is no NVML to ask.
    """
    variables = os.environ if environment is None else environment
    devices = visible(variables.get(VARIABLE), nvml.read(thorough=False).cards).devices
    if uuid is not None:
        wanted = _bare(uuid)
        return next((seen for seen in devices if wanted == _bare((seen.instance or seen.card).uuid or "")), None)
    return next((seen for seen in devices if seen.ordinal == ordinal), None)


def _bare(uuid: str) -> str:
    return uuid.removeprefix("GPU-").removeprefix("MIG-").lower()


def _is_here(pid: int) -> bool:
    """Whether this process could see that one: a container does not see the host's."""
    return not Path("/proc/self").exists() or Path(f"/proc/{pid}").exists()


def _most(values: Any) -> int | None:
    return max((value for value in values if value is not None), default=None)


@dataclass
class _Seen:
    """What the readings add up to."""

    phases: dict[str, PhaseSample] = field(default_factory=dict)
    others: dict[int, Other] = field(default_factory=dict)
    present: set[int] = field(default_factory=set)
    sources: set[Source] = field(default_factory=set)
    unanswered: dict[str, str] = field(default_factory=dict)
    num_samples: int = 0
    last: float = 0.0
    longest_gap: float = 0.0


class MemorySampler:
    """
    Watches one process on one device.

    It may be started before the process exists: what the card holds then is the baseline. Every phase gets at least one reading, at its
    end, however short it is.

    Args:
        seen: The device.
        pid: The process; None until `watch` tells.
        interval_seconds: Between two readings.

    Raises:
        UnavailableError: NVML cannot be asked about the device.
    """

    def __init__(self, seen: Seen, pid: int | None = None, *, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self.device, self.pid, self._interval = seen, pid, interval_seconds
        self._gauge = nvml.Gauge(seen.card, seen.instance)
        self._lock, self._ended = Lock(), Event()
        self._thread = Thread(target=self._run, name="qplan-sampler", daemon=True)
        self._found, self._phase = _Seen(), IDLE
        self._told: Memory | None = None
        self._alias: int | None = None  # the number that the driver has for it, where a container has another
        self._is_lost = False
        self._baseline: nvml.Reading | None = None
        self._result: Samples | None = None

    def start(self) -> MemorySampler:
        """Take the baseline, and begin."""
        self._baseline = self._gauge.read()
        self._is_lost = self._baseline.is_lost
        self._found.last = perf_counter()
        for row in self._baseline.rows or ():
            if row.pid != self.pid:
                self._found.others[row.pid] = Other(row.pid, nvml.program_of(row.pid), row.used_bytes, came=False)
                self._found.present.add(row.pid)
        self._thread.start()
        return self

    def watch(self, pid: int) -> None:
        """The process is there now."""
        with self._lock:
            self.pid = pid
            self._found.others.pop(pid, None)

    def phase(self, name: str) -> int | None:
        """
        The phase so far ends, and that one begins, or goes on.

        Returns:
            What NVML says that the process holds at this very moment; None where it does not say.
        """
        with self._lock:
            held = self._sample()
            self._phase = name
            return held

    def told(self, free_bytes: int, total_bytes: int) -> None:
        """What the process itself learned from cudaMemGetInfo: it counts where NVML does not answer."""
        with self._lock:
            self._told = Memory(total_bytes, total_bytes - free_bytes, free_bytes)

    def stop(self) -> Samples:
        """End, and give what was seen; a second call gives the same."""
        if self._result is None:
            self._ended.set()
            self._thread.join()
            with self._lock:
                self._sample()
                self._gauge.close()
                self._result = self._samples()
        return self._result

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            with self._lock:
                if self._is_lost:
                    return
                self._sample()

    def _sample(self) -> int | None:
        """One reading, into the phase that it falls in; what NVML itself says of the process."""
        if self._is_lost or self._baseline is None:
            return None
        reading, found, now = self._gauge.read(), self._found, perf_counter()
        found.longest_gap, found.last = max(found.longest_gap, now - found.last), now
        if reading.is_lost:
            self._is_lost = True
            return None
        found.num_samples += 1
        found.unanswered |= reading.unanswered
        memory = reading.memory or self._told
        others = self._others(reading.rows)
        own = self._own(reading, memory, others)
        phase = found.phases.setdefault(self._phase, PhaseSample(self._phase))
        phase.num_samples += 1
        phase.process_bytes = _most((phase.process_bytes, own))
        phase.device_used_bytes = _most((phase.device_used_bytes, memory.used_bytes if memory else None))
        phase.others_bytes = _most((phase.others_bytes, others))
        return next((row.used_bytes for row in reading.rows or () if row.pid in (self.pid, self._alias)), None)

    def _own(self, reading: nvml.Reading, memory: Memory | None, others: int | None) -> int | None:
        """What the watched process holds: as NVML says, or what the card holds more than before it, less what others hold more."""
        row = next((row for row in reading.rows or () if row.pid in (self.pid, self._alias)), None)
        if row is not None and row.used_bytes is not None:
            self._found.sources.add("nvml_process")
            return row.used_bytes
        if self.pid is None or memory is None or self._baseline is None or self._baseline.memory is None:
            return None
        self._found.sources.add("cuda_mem_get_info" if reading.memory is None else "nvml_device")
        before = sum(row.used_bytes or 0 for row in self._baseline.rows or () if row.pid != self.pid)
        more = 0 if others is None else others - before
        return max(memory.used_bytes - self._baseline.memory.used_bytes - more, 0)

    def _others(self, rows: tuple[nvml.Row, ...] | None) -> int | None:
        """What other processes hold, each remembered."""
        if rows is None:
            return None
        if self.pid is not None and self._alias is None and all(row.pid != self.pid for row in rows):
            before = {row.pid for row in (self._baseline.rows if self._baseline else None) or ()}
            abroad = [row.pid for row in rows if row.pid not in before and not _is_here(row.pid)]
            self._alias = abroad[0] if len(abroad) == 1 else None
            self._found.others.pop(self._alias or 0, None)
        strangers = [row for row in rows if row.pid not in (self.pid, self._alias)]
        self._found.present = {row.pid for row in strangers}
        for row in strangers:
            other = self._found.others.get(row.pid)
            if other is None:
                other = self._found.others[row.pid] = Other(row.pid, nvml.program_of(row.pid), None, came=True)
            other.used_bytes = _most((other.used_bytes, row.used_bytes))
        return sum(row.used_bytes or 0 for row in strangers)

    def _samples(self) -> Samples:
        found, baseline = self._found, self._baseline
        for other in found.others.values():
            other.went = other.pid not in found.present
        order: tuple[Source, ...] = ("nvml_process", "nvml_device", "cuda_mem_get_info")
        memory = (baseline.memory if baseline else None) or self._told
        has_process = any(phase.process_bytes is not None for phase in found.phases.values())
        return Samples(
            total_bytes=memory.total_bytes if memory else None,
            baseline_bytes=baseline.memory.used_bytes if baseline and baseline.memory else None,
            source=next((source for source in order if source in found.sources), None) if has_process else None,
            phases=tuple(found.phases.values()),
            others=tuple(sorted(found.others.values(), key=lambda other: (-(other.used_bytes or 0), other.pid))),
            num_samples=found.num_samples,
            longest_gap_seconds=found.longest_gap,
            is_lost=self._is_lost,
            notes=tuple(self._notes(has_process=has_process)),
        )

    def _notes(self, *, has_process: bool) -> list[str]:
        """What was not as usual, in sentences."""
        found, notes = self._found, []
        if self._is_lost:
            notes.append("the card went away while it was watched: what came after is not known")
        if "memory" in found.unanswered:
            reason = f"NVML does not tell this card's memory ({found.unanswered['memory']})"
            notes.append(f"{reason}: cudaMemGetInfo of the process itself is taken" if self._told else f"{reason}, and nobody else told it")
        if "processes" in found.unanswered:
            notes.append(
                f"NVML does not tell who holds the card's memory ({found.unanswered['processes']}): other processes that came or went "
                "meanwhile are in these numbers"
            )
        if "nvml_device" in found.sources and "nvml_process" not in found.sources:
            notes.append("NVML does not tell what this process holds: taken is what the card holds more than before it")
        if self._alias is not None:
            notes.append("the driver numbers processes as the host does: the one that came with this run is taken for it")
        if not has_process and not self._is_lost and self.pid is not None:
            notes.append("nobody tells what this process holds on the card")
        notes += [_told_of(other) for other in found.others.values() if other.came or other.went]
        staying = [other for other in found.others.values() if not other.came and not other.went]
        if staying:
            held = human(sum(other.used_bytes or 0 for other in staying))
            notes.append(f"{len(staying)} other process{'es' if len(staying) > 1 else ''} held {held} of the card all the time")
        return notes


def _told_of(other: Other) -> str:
    """A process that came or went, in a sentence."""
    what = "came and went" if other.came and other.went else "came" if other.came else "went"
    held = "an unknown amount" if other.used_bytes is None else human(other.used_bytes)
    return f"another process, {other.name or f'pid {other.pid}'}, {what} while this one ran; it held {held}, which is not counted"
