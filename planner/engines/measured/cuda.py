"""
One measurement on a card.

First a run that is watched in full: loading, preparing, two steps, an evaluation and a save, with every entry of the allocator's own
history and a tracker that says what each is for; torch's counters have to say the same. Then steps that nobody watches but the counters
and NVML: what they say is the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from planner.engines.measured.allocator_history import Mark, Stage, history_of, requested_peaks
from planner.engines.measured.run import Order, Tell, stand, surroundings
from planner.engines.measured.tracker import Full, Tracker, rules
from planner.engines.running.accumulation import Accumulation
from planner.engines.running.blueprint import draw
from planner.engines.running.building import import_libraries
from planner.engines.running.training import Training
from planner.errors import UnavailableError
from planner.ledger import Category, Phase
from planner.sampling import MemorySampler, Samples, device_seen

STEPS = (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP)


class Counters:
    """
    Torch's counters of a card by phase, and the allocator's entries while they are recorded.

    Args:
        number: CUDA's number of the card.
        tell: Is told of each phase.
        sampler: Watches this process by NVML; None where it does not answer.

    Attributes:
        allocated, reserved, requested: The most in each phase.
        stages: The allocator's entries, in order.
        is_recording: Whether they are taken.
    """

    def __init__(self, number: int, tell: Tell, sampler: MemorySampler | None) -> None:
        self.number, self.tell, self.sampler = number, tell, sampler
        self.allocated: dict[Phase, int] = {}
        self.reserved: dict[Phase, int] = {}
        self.requested: dict[Phase, int] = {}
        self.stages: list[Stage] = []
        self.is_recording = False
        self._first = 0

    @property
    def num_allocations(self) -> int:
        """How many the allocator has counted since the recording began."""
        return int(torch.cuda.memory_stats_as_nested_dict(self.number)["allocation"]["all"]["allocated"]) - self._first

    def record(self) -> None:
        """From now on the allocator's entries are taken."""
        self._first = 0
        self._first = self.num_allocations
        self.is_recording = True
        self._clear()

    def stop_recording(self) -> None:
        """No more."""
        self.is_recording = False
        torch.cuda.memory._record_memory_history(enabled=None)

    def forget(self) -> None:
        """The peaks so far do not count."""
        self.allocated, self.reserved, self.requested = {}, {}, {}

    def __call__(self, phase: Phase, begins: bool) -> None:
        """A phase begins, or has ended."""
        torch.cuda.synchronize(self.number)
        if begins:
            self.tell({"phase": phase.value, "begins": True})
            torch.cuda.reset_peak_memory_stats(self.number)
        else:
            peaks = torch.cuda.memory_stats(self.number)
            for found, name in (
                (self.allocated, "allocated_bytes.all.peak"), (self.reserved, "reserved_bytes.all.peak"),
                (self.requested, "requested_bytes.all.peak"),
            ):  # fmt: skip
                found[phase] = max(found.get(phase, 0), int(peaks.get(name, 0)))
        if self.is_recording:
            self.stages.append(Stage(phase, self._taken()))
        if self.sampler is not None:
            self.sampler.told(*torch.cuda.mem_get_info(self.number))
            self.sampler.phase(phase.value)
        if not begins:
            self.tell({"phase": phase.value, "begins": False})

    def _taken(self) -> list[dict[str, Any]]:
        """The entries since they were taken last."""
        traces = torch.cuda.memory._snapshot(self.number)["device_traces"]
        self._clear()
        return [dict(entry) for entry in traces[self.number]] if len(traces) > self.number else []

    def _clear(self) -> None:
        torch.cuda.memory._record_memory_history(enabled=None)
        torch.cuda.memory._record_memory_history(enabled="all", context=None, stacks="python", clear_history=True)


class _Marks:
    """What a tracker sees, with the allocator's count at that moment."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.found: list[tuple[int, int, int]] = []

    def __call__(self, index: int, storage: torch.UntypedStorage) -> None:
        """A storage is born."""
        if self.counters.is_recording:
            self.found.append((self.counters.num_allocations, storage.data_ptr(), index))

    def named(self, tracker: Tracker) -> list[Mark]:
        """With what they turned out to be."""
        h = tracker.history
        return [Mark(n, address, h.names[i], h.scopes[i], h.categories[i], h.owners[i]) for n, address, i in self.found]


def measure_on_card(order: Order, tell: Tell) -> Mapping[str, Any]:
    """
    Measure on a card.

    Args:
        order: What to measure.
        tell: Is told where it is.

    Returns:
        The child's last message: `{"result": ...}` or `{"out_of_memory": ...}`.

    Raises:
        NotReal: A step trained nothing.
        UnavailableError: torch sees no such card.
    """
    number = int(order.device.partition(":")[2] or 0)
    sampler, notes = _sampler(number)
    if not torch.cuda.is_available() or number >= torch.cuda.device_count():
        raise UnavailableError(
            f"torch {torch.__version__} sees no card {order.device}",
            hint="install a build of torch for CUDA (https://pytorch.org), or pass --device cpu; qplan doctor says what this machine has",
        )
    torch.cuda.set_device(number)
    torch.cuda.init()
    context = _held(sampler, number)
    counters = Counters(number, tell, sampler)
    marks = _Marks(counters)
    tracker = Tracker("cuda", rules("cuda"), on_birth=marks, on_phase=counters)
    try:
        with ExitStack() as stack, _watched_for_memory(tracker, number) as last:
            stack.enter_context(surroundings())
            training = _watched(order, tracker, counters, stack)
            watched = dict(counters.allocated), dict(counters.requested)
            _counted(order, tracker, counters, training)
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": (last[-1] if last else out_of_memory(tracker, number, None, error)).model_dump()}
    history = history_of(counters.stages, marks.named(tracker))
    notes += unbalanced(requested_peaks(history), watched[1])
    peaks = {phase: counters.allocated.get(phase, watched[0].get(phase, 0)) for phase in {**watched[0], **counters.allocated}}
    reserved = max(counters.reserved.values())
    steady = torch.cuda.memory_allocated(number)
    samples = None if sampler is None else sampler.stop()
    assert tracker.check is not None
    return {
        "result": {
            "history": history.model_dump(),
            "counters": {
                p.value: {"allocated_bytes": peaks[p], "reserved_bytes": counters.reserved.get(p, reserved)} for p in Phase if p in peaks
            },
            "steady_bytes": steady,
            "losses": tracker.check.losses,
            "num_quantized_parameters": training.num_quantized_parameters,
            "num_trainable_parameters": training.num_trainable_parameters,
            "paged_bytes": training.paged_bytes,
            "process_bytes": None if samples is None else samples.process_bytes,
            "apart": {
                "context_bytes": context, "workspace_bytes": _workspaces(number), "reserve_bytes": reserved - max(peaks.values()),
            },
            "environment": _environment(number),
            "notes": [*notes, *_notes(samples)],
        }
    }  # fmt: skip


def _watched(order: Order, tracker: Tracker, counters: Counters, stack: ExitStack) -> Training:
    """The run that is watched in full."""
    import_libraries(order.recipe)
    blueprint = draw(order.spec, order.recipe, every_layer=True)
    counters.record()
    with tracker, tracker.in_modules():
        Accumulation(tracker)
        tracker.forget()
        _, training = stand(order, blueprint, tracker, stack)
        assert tracker.check is not None
        tracker.check.looks = False
        training.step()
        training.step()
        training.evaluate()
        training.save()
    counters.stop_recording()
    return training


def _counted(order: Order, tracker: Tracker, counters: Counters, training: Training) -> None:
    """A step that is checked, then those that nobody watches but the counters."""
    assert tracker.check is not None
    tracker.check.looks = True
    training.step()
    tracker.check.looks = False
    reserved = dict(counters.reserved)
    counters.forget()
    counters.reserved = reserved
    for _ in range(order.steps):
        training.step()


@contextmanager
def _watched_for_memory(tracker: Tracker, number: int) -> Iterator[list[Full]]:
    """Inside, what is alive is written down at the moment in which memory runs out, before anything is given back."""
    found: list[Full] = []
    attach: Callable[[Any], None] | None = getattr(torch._C, "_cuda_attach_out_of_memory_observer", None)
    if attach is not None:
        attach(lambda _device, requested, _allocated, _free: found.append(out_of_memory(tracker, number, int(requested))))
    yield found


def out_of_memory(tracker: Tracker, number: int, requested: int | None, error: BaseException | None = None) -> Full:
    """Where the run was and what was alive; what no tracker saw has no category."""
    allocated, reserved = torch.cuda.memory_allocated(number), torch.cuda.memory_reserved(number)
    full = Full(requested, allocated, reserved)
    known = tracker.by_category()
    rest = allocated - sum(known.values())
    full.phase, full.scope = tracker.phase, tracker.scope
    full.by_category = {**known, **({Category.UNATTRIBUTED: rest} if rest > 0 else {})}
    full.__cause__ = error
    return full


def unbalanced(history: Mapping[Phase, int], counted: Mapping[Phase, int]) -> list[str]:
    """Phases in which the allocator's history and its counters do not say the same."""
    return [
        f"{phase.value.replace('_', ' ')}: the allocator's history has {history.get(phase, 0):,} bytes asked for at its peak, its counter "
        f"{nbytes:,}"
        for phase, nbytes in counted.items()
        if nbytes and history.get(phase, 0) != nbytes
    ]


def _sampler(number: int) -> tuple[MemorySampler | None, list[str]]:
    """NVML's watch on this process, begun before it has a context."""
    try:
        seen = device_seen(number)
        if seen is None:
            return None, ["NVML does not know the card that CUDA sees: what the process holds is not measured"]
        return MemorySampler(seen, os.getpid()).start(), []
    except UnavailableError as error:
        return None, [f"NVML cannot be asked, so what the process holds is not measured: {error.message}"]


def _held(sampler: MemorySampler | None, number: int) -> int | None:
    """The context alone: what the process holds when it has one and torch has reserved next to nothing."""
    if sampler is None:
        return None
    torch.zeros(1, device=f"cuda:{number}")
    torch.cuda.synchronize(number)
    held = sampler.phase("context")
    return None if held is None else held - torch.cuda.memory_reserved(number)


def _workspaces(number: int) -> int | None:
    """What cuBLAS's workspaces take of the allocator: what is given back with them."""
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is None:
        return None
    before = torch.cuda.memory_allocated(number)
    clear()
    return before - torch.cuda.memory_allocated(number)


def _environment(number: int) -> dict[str, Any]:
    from planner import nvml

    found: dict[str, Any] = {"cuda": torch.version.cuda, "compute_capability": list(torch.cuda.get_device_capability(number))}
    try:
        found["driver"] = nvml.driver_version()
    except UnavailableError:
        found["driver"] = None
    return found


def _notes(samples: Samples | None) -> tuple[str, ...]:
    return () if samples is None else samples.notes
