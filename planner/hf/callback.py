"""The callback: a plan before the first step, a measurement of every phase, both side by side at the end, and a record of it."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from transformers import TrainerCallback

from planner import api
from planner.device import Device
from planner.errors import InvalidRecipeError, QplanError, UnavailableError, UnsupportedModelError
from planner.hf.derive import Run, derive
from planner.hf.watching import Watch
from planner.ledger import Phase
from planner.render import terminal
from planner.render.watched import lines, plan_lines
from planner.stack import resolve
from planner.value import replace

if TYPE_CHECKING:
    from planner.recipe import Recipe
    from planner.records import Record
    from planner.report import Report


ENGINES = ("auto", "analytic", "traced")


class MemoryPlanWarning(UserWarning):
    """A run will probably not fit its card."""


class MemoryPlanCallback(TrainerCallback):  # type: ignore[misc]
    """
    Plans, watches and compares a run of `Trainer` or `SFTTrainer`: `SFTTrainer(..., callbacks=[MemoryPlanCallback()])`.

    At the start it reads model, recipe and versions off the trainer's objects, prints what the run needs, and warns
    (`MemoryPlanWarning`) where the card does not have it. While the run trains it measures the peak of every phase: on CUDA by torch's
    counters, which it resets between phases, and by NVML; on the CPU by following storages, which slows it down. At the end it prints
    predicted beside measured, and keeps a record (`qplan records`). It changes nothing about the training, and no fault of its own ends
    it: what cannot be planned is said, and measured all the same.

    Args:
        seq_len: Tokens in the longest batch; None reads it off the samples and `max_length`.
        engine: `analytic`; `traced`, which takes longer; or `auto`: the closed form where it knows the model, and at the end of a run on
            the CPU, whose kernels it does not know, a trace of these, as with `traced`.
        gpu: A card to plan for; None for the one that trains.
        record: Whether to keep a record and the card's own values.
        out: Where to print; None for standard error.

    Attributes:
        report: The plan; None before the start, and where the run cannot be planned.
        problem: Why it cannot be.
        measured_bytes: The allocated peak of every phase, once the run has ended.
        compared: The plan for the largest batch that was seen, with which the end compares.
        kept: The record.
    """

    def __init__(
        self,
        *,
        seq_len: int | None = None,
        engine: str = "auto",
        gpu: str | Device | None = None,
        record: bool = True,
        out: TextIO | None = None,
    ) -> None:
        if engine not in ENGINES:
            raise InvalidRecipeError(f"engine is `{engine}`; it must be one of {', '.join(ENGINES)}")
        self.seq_len, self.engine, self.gpu, self.record, self.out = seq_len, engine, gpu, record, out
        self.report: Report | None = None
        self.compared: Report | None = None
        self.problem: str | None = None
        self.measured_bytes: dict[str, int] = {}
        self.kept: Record | None = None
        self._run: Run | None = None
        self._watch: Watch | None = None

    def close(self) -> None:
        """Stop watching: for a run that ended in an error; the end of a run, and the start of the next one, do it too."""
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.stop()

    # What the trainer calls

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Plan, say so, and begin to watch."""
        self.close()
        self.report = self.compared = self.problem = self.kept = self._run = None
        watch = Watch(model, exact=self.engine != "analytic")
        try:
            self._run = derive(model, args, others.get("optimizer"), others.get("train_dataloader"), seq_len=self.seq_len)
            self.report = self._plan(self._run, watch.device if self.gpu is None else self.gpu)
            if state.is_world_process_zero:
                self._announce(self.report, self._run)
        except QplanError as error:
            self.problem = error.message
            self._print([f"qplan cannot plan this run: {error.message}", *([f"hint: {error.hint}"] if error.hint else [])])
        self._watch = watch
        watch.start()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The optimizer's step begins."""
        self._enter(Phase.OPTIMIZER_STEP.value)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """The step is over: gradients are gone."""
        self._enter(None)

    def on_substep_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """A micro-batch is over."""
        self._enter(None)

    def on_evaluate(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """An evaluation has ended; its first forward began it."""
        self._enter(None)

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """A checkpoint was saved: what happened since the last phase was that."""
        if self._watch is not None:
            self._watch.enter(None, was=Phase.SAVE.value)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Compare, print, and keep a record."""
        watch = self._watch
        if watch is None:
            return
        self.close()
        self.measured_bytes = watch.peaks
        if not state.is_world_process_zero:
            return
        if self._run is None or self.report is None:
            self._print(lines({}, watch.peaks, terminal.Terminal.of(self._out), notes=watch.notes))
            return
        try:
            self._end(watch, self._run, self.report)
        except QplanError as error:
            self._print([f"qplan: {error.message}", *([f"hint: {error.hint}"] if error.hint else [])])

    # What it does then

    @property
    def _out(self) -> TextIO:
        return self.out or sys.stderr

    def _print(self, rows: list[str]) -> None:
        with suppress(OSError, ValueError):  # a closed stream ends no training
            terminal.write(rows, self._out)

    def _enter(self, phase: str | None) -> None:
        if self._watch is not None:
            self._watch.enter(phase)

    def _plan(self, run: Run, device: Device | str | None) -> Report:
        knobs = {name: knob for name, knob in run.recipe.model_dump().items() if knob is not None}
        engine = "analytic" if self.engine == "auto" else self.engine
        try:
            return api.estimate(run.spec, gpu=device, stack=run.stack, engine=engine, **knobs)
        except UnsupportedModelError:
            if self.engine != "auto":
                raise
            return api.estimate(run.spec, gpu=device, stack=run.stack, engine="traced", **knobs)

    def _on_cpu(self, run: Run, recipe: Recipe, report: Report) -> Report:
        """The plan with the peaks that a trace of the CPU's own kernels has; as it is where they cannot be traced."""
        from planner.verifying import predict

        try:
            return replace(report, engine="traced", phases=predict(run.spec, recipe, run.stack, None).phases)
        except (UnavailableError, UnsupportedModelError):
            return report

    def _announce(self, report: Report, run: Run) -> None:
        """What the run needs; a warning where the card does not have it."""
        self._print(plan_lines(report, terminal.Terminal.of(self._out), notes=run.notes))
        verdict = report.verdict
        if verdict is not None and report.device is not None and not verdict.fits:
            need, has = verdict.required_bytes, verdict.budget_bytes
            warnings.warn(
                f"this run needs {need:,} bytes of {report.device.name}, which has {has:,} for it: it will not fit",
                MemoryPlanWarning,
                stacklevel=2,
            )

    def _end(self, watch: Watch, run: Run, report: Report) -> None:
        """Compare with a plan for the largest batch that was seen, print, keep."""
        recipe, notes = run.recipe, [*watch.notes]
        if watch.largest_batch is not None and watch.largest_batch != (recipe.batch_size, recipe.seq_len):
            batch, length = watch.largest_batch
            recipe = recipe.model_copy(update={"batch_size": batch, "seq_len": length})
            notes.append(
                f"planned for {run.recipe.batch_size} x {run.recipe.seq_len} tokens; the largest batch had {batch} x {length}, "
                "for which this compares"
            )
        if recipe is not run.recipe or self.gpu is not None:
            report = self._plan(replace(run, recipe=recipe), watch.device)
        resolved = resolve(recipe, run.stack, run.spec.dtype)
        if self.engine != "analytic" and not watch.is_cuda:
            report = self._on_cpu(run, resolved, report)
        self.compared = report
        notes += watch.explanations(report)
        self._print(lines(watch.predicted(report), watch.peaks, terminal.Terminal.of(self._out), notes=notes, levels=watch.levels(report)))
        if self.record:
            self._keep(watch, run, resolved, report)

    def _keep(self, watch: Watch, run: Run, recipe: Recipe, report: Report) -> None:
        from planner.records import Store, make

        rows = watch.rows(report)
        if not rows:
            return
        record = make(
            origin="callback",
            engine=report.engine,
            device=watch.device,
            driver=watch.driver,
            spec=run.spec,
            recipe=recipe,
            stack=run.stack,
            comparison=rows,
            peak=watch.levels(report),
            process=watch.process,
        )
        Store().add(record)
        self.kept = record
        watch.remember(run.stack, is_paged=recipe.optim is not None and recipe.optim.startswith("paged_"))
