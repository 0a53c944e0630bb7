"""Watching a trainer's run from inside: which phase it is in, and what each allocates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner import own_values
from planner.engines.measured.meters import IDLE, CudaMeter, Meter, StorageMeter
from planner.errors import UnavailableError
from planner.formulas.blocks import BLOCK_BYTES
from planner.keeping import measured_with
from planner.ledger import Category, Phase
from planner.records.record import Level, Row
from planner.units import MIB
from planner.value import replace

if TYPE_CHECKING:
    from planner.device import Device
    from planner.report import Report
    from planner.sampling import MemorySampler, Samples
    from planner.stack import Stack

_TINY = MIB
_LOADING = (Phase.LOAD.value, Phase.PREPARE.value)


def _larger(one: tuple[int, int] | None, other: tuple[int, int]) -> tuple[int, int]:
    """The batch with more tokens."""
    return other if one is None or other[0] * other[1] > one[0] * one[1] else one


class Watch:
    """
    One run, watched.

    Args:
        model: What the trainer trains.
        exact: Whether tensors on the CPU count with the very bytes that they have, rather than with CUDA's blocks.

    Attributes:
        device: The card that it is on, less what others hold; None for the CPU, and where NVML does not know it.
        driver: Its driver's version, where it is known.
        is_cuda: Whether it is on a card at all.
        largest_batch: (sequences, tokens) of the largest batch that reached the model in training; None before the first.
        largest_evaluated: The same in evaluation.
        notes: What could not be measured as usual.
    """

    def __init__(self, model: Any, *, exact: bool = False) -> None:
        self.model = model
        self.device: Device | None = None
        self.driver: str | None = None
        self.largest_batch: tuple[int, int] | None = None
        self.largest_evaluated: tuple[int, int] | None = None
        self.notes: list[str] = []
        self.samples: Samples | None = None
        self._has_stepped = self._met_states = False
        self._hooks: list[Any] = []
        where = next(model.parameters()).device
        self.is_cuda = where.type == "cuda"
        self._sampler = self._find_card(where.index or 0) if self.is_cuda else None
        self.meter: Meter = CudaMeter(self._sampler) if self.is_cuda else StorageMeter(1 if exact else BLOCK_BYTES)
        if not self.is_cuda:
            self.notes.append(f"this ran on {where.type}: what its kernels take inside themselves is not seen")

    def _find_card(self, ordinal: int) -> MemorySampler | None:
        import os

        import torch

        from planner import cards, nvml, sampling

        try:
            uuid = getattr(torch.cuda.get_device_properties(ordinal), "uuid", None)
            seen = sampling.device_seen(ordinal, uuid=None if uuid is None else str(uuid))
            if seen is None:
                self.notes.append("NVML does not know the card that torch trains on: processes are not measured")
                return None
            sampler = sampling.MemorySampler(seen, os.getpid()).start()
            self.driver = nvml.driver_version()
        except UnavailableError as error:
            self.notes.append(f"NVML cannot be asked, so processes are not measured: {error.message}")
            return None
        self.device = cards.device_of(seen)
        if self.device is not None:
            held = sampler.phase(IDLE)
            ours = torch.cuda.memory_reserved(ordinal) if held is None else held
            self.device = replace(self.device, used_bytes=max(self.device.used_bytes - ours, 0))
        return sampler

    # Phases

    def start(self) -> None:
        """Begin."""
        self._hooks = [
            self.model.register_forward_pre_hook(self._forward_begins, with_kwargs=True),
            self.model.register_forward_hook(self._forward_ends),
        ]
        self.meter.start(self.model)

    def enter(self, phase: str | None, *, was: str | None = None) -> None:
        """A phase begins, or None of them; `was` says what the time since the last one turned out to be."""
        self._has_stepped = self._has_stepped or phase == Phase.OPTIMIZER_STEP.value
        self.meter.enter(phase or IDLE, was=was)

    def stop(self) -> None:
        """End; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.meter.stop()
        if self._sampler is not None:
            self.samples = self._sampler.stop()
            self.notes += [note for note in self.samples.notes if note not in self.notes]

    def _forward_begins(self, module: Any, args: Any, kwargs: Any) -> None:
        """The model is called: a training step's forward, or an evaluation."""
        self.enter(Phase.FORWARD.value if module.training else Phase.EVALUATION.value)
        ids = kwargs.get("input_ids", args[0] if args else None)
        if getattr(ids, "ndim", 0) == 2:
            shape = (int(ids.shape[0]), int(ids.shape[1]))
            if module.training:
                before, self.largest_batch = self.largest_batch, _larger(self.largest_batch, shape)
                if self.largest_batch == shape:  # the largest so far, or one like it
                    self._met_states = self._has_stepped or (self._met_states and before == shape)
            else:
                self.largest_evaluated = _larger(self.largest_evaluated, shape)

    def _forward_ends(self, module: Any, args: Any, output: Any) -> None:
        """The first gradient of an output is where backward begins."""
        values = output.values() if hasattr(output, "values") else output if isinstance(output, tuple) else (output,)
        for value in values:
            if getattr(value, "requires_grad", False):
                value.register_hook(self._backward_begins)

    def _backward_begins(self, _: Any) -> None:
        if self.meter.phase == Phase.FORWARD.value:
            self.enter(Phase.BACKWARD.value)

    # What came of it

    @property
    def peaks(self) -> dict[str, int]:
        """The allocated peak of every phase of a run, in their order."""
        order = [phase.value for phase in Phase]
        return {name: self.meter.allocated[name] for name in order if name in self.meter.allocated}

    def predicted(self, report: Report) -> dict[str, int]:
        """
        The allocated peak that a plan has for every phase.

        Loading and preparing are one: both were over before this watched. Their peak is then known to torch's counters of a card alone: on
        the CPU what they left is measured, and nothing is compared with it. Nor has the CPU cuBLAS, so that workspaces are left out there.
        An evaluation is planned for the batches of training: of other batches nothing is compared.
        """
        found = {
            phase.phase: phase.allocated_peak_bytes - (0 if self.is_cuda else phase.by_category.get(Category.WORKSPACE.value, 0))
            for phase in report.phases
        }
        if self.largest_evaluated != self.largest_batch:
            found.pop(Phase.EVALUATION.value, None)
        before = [found.pop(name) for name in _LOADING if name in found]
        return {_LOADING[0]: max(before), **found} if before and self.is_cuda else found

    def rows(self, report: Report) -> tuple[Row, ...]:
        """Measured beside predicted, of the phases that both have; sums alone, since counters do not tell categories apart."""
        predicted = self.predicted(report)
        return tuple(Row(name, None, nbytes, predicted[name]) for name, nbytes in self.peaks.items() if name in predicted)

    def levels(self, report: Report) -> dict[str, Level]:
        """The highest of the phases, at each level that was measured."""
        rows = self.rows(report)
        if not rows:
            return {}
        found = {"allocated": Level(max(row.measured_bytes for row in rows), max(row.predicted_bytes for row in rows))}
        if self.meter.reserved:
            found["reserved"] = Level(max(self.meter.reserved.values()), report.peak.reserved_bytes)
        if self.samples is not None and self.samples.process_bytes is not None:
            found["process"] = Level(self.samples.process_bytes, report.peak.process_bytes)
        return found

    def explanations(self, report: Report) -> list[str]:
        """
        Known behaviours that explain a difference of a hundredth or more, a sentence each.

        Source:
            torch@2.13.0, optim/optimizer.py, `_default_to_fused_or_foreach`: foreach is the default for tensors on CUDA alone;
            optim/adamw.py, `_multi_tensor_adamw`: it makes temporaries of all tensors together.
        """
        rows = {row.phase: row for row in self.rows(report)}
        step, found = rows.get(Phase.OPTIMIZER_STEP.value), []
        if not self.is_cuda and report.engine == "analytic":
            found.append("the closed form plans CUDA's kernels; cuBLAS's workspaces are left out here")
        if step and not self.is_cuda and step.difference_bytes * 100 > step.measured_bytes and report.recipe["optim"] == "adamw_torch":
            found.append("on CUDA adamw_torch steps all tensors together and makes their temporaries at once; on the CPU one by one")
        if rows and not self._met_states:
            found.append("the largest batch came in the first step, before the optimizer had its states: a plan is for the steps after")
        if any(row.measured_bytes < _TINY for row in rows.values()):
            found.append("at less than a mebibyte, indices and masks that a step makes beside its tensors are percents")
        return found

    @property
    def process(self) -> dict[str, int | None]:
        """What the process held beyond what torch allocated: its context, and what the allocator reserved beyond its peak."""
        contexts = self.meter.contexts if isinstance(self.meter, CudaMeter) else []
        reserve = max(self.meter.reserved.values()) - max(self.meter.allocated.values()) if self.meter.reserved else None
        return {"context_bytes": contexts[-1] if contexts else None, "workspace_bytes": None, "reserve_bytes": reserve}

    def remember(self, stack: Stack, *, is_paged: bool = False) -> None:
        """
        Keep the card's own context and reserve; without a context there is nothing to keep.

        Args:
            stack: The installed libraries.
            is_paged: Whether optimizer states may be on the card beside torch's memory: nobody tells them from the context.
        """
        context = self.process["context_bytes"]
        if self.device is None or context is None or context <= 0 or is_paged:
            return
        share = own_values.reserve_per_mille(max(self.meter.allocated.values()), max(self.meter.reserved.values()))
        own_values.remember(self.device, own_values.OwnValues(context, None, share, measured_with(stack, self.driver)))
