"""One run to plan: what an engine found out, judged on cards, as a report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from planner import advice, catalog, home
from planner import stack as stacks
from planner import verdict as verdicts_
from planner.allocator import AllocatorSettings
from planner.cards import OWN_VALUES
from planner.device import Device
from planner.engines import analytic
from planner.engines.analysis import Analysis
from planner.errors import QplanError
from planner.ledger import Ledger
from planner.recipe import Recipe
from planner.report import (
    CardOutcome,
    CardVerdict,
    Details,
    DeviceReport,
    Finding,
    Held,
    HostReport,
    ModelReport,
    Outcome,
    PeakReport,
    PhaseReport,
    Report,
    Suggestion,
    Verdict,
)
from planner.spec import ModelSpec
from planner.stack import Stack
from planner.units import human
from planner.value import Value

if TYPE_CHECKING:
    from planner.agreement import Agreement
    from planner.history import History
    from planner.own_values import OwnValues
    from planner.records import Near
    from planner.render.timeline import Picture
    from planner.simulation import Simulation

RECORDS = "records"
"""The folder of the user's data that `planner.records` keeps records in."""


class Job(Value, eq=False):
    """One run to plan: the inputs of an engine but for the card."""

    spec: ModelSpec
    recipe: Recipe
    stack: Stack
    asked: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    engine: str = "analytic"
    progress: Callable[[str], None] | None = None
    every_layer: bool = False
    _found: dict[tuple[object, ...], Analysis] = field(default_factory=dict, repr=False)
    _simulated: dict[tuple[object, ...], tuple[Simulation, ...]] = field(default_factory=dict, repr=False)

    @cached_property
    def resolved(self) -> Recipe:
        """The recipe with every knob filled."""
        return self._resolve(self.recipe)

    def analysis(self, device: Device | None) -> Analysis:
        """What the engine finds; of a card it sees the compute capability alone, so cards that share one share the answer."""
        capability = analytic.DEFAULT_CAPABILITY if device is None else device.compute_capability
        key = (capability, device.own.workspace_bytes if device is not None and device.own is not None else None)
        if key not in self._found:
            self._found[key] = self._analyse(device)
        return self._found[key]

    def _analyse(self, device: Device | None) -> Analysis:
        if self.engine == "analytic":
            return analytic.analyse(self.spec, self.resolved, self.stack, device)
        from planner.engines.installed import traced_engine

        traced = traced_engine(self.stack, self.progress)
        found: Analysis = traced.analyse(self.spec, self.resolved, self.stack, device, every_layer=self.every_layer, progress=self.progress)
        return found

    def agreement(self, device: Device | None) -> Agreement | None:
        """The closed form beside the trace, where both were asked for."""
        if self.engine != "both":
            return None
        from planner.agreement import Agreement

        return Agreement(self.closed.analysis(device).ledger, self.analysis(device).ledger)

    def near(self, device: Device | None) -> Near | None:
        """The record of a verification on the card that is nearest to this run; a look for a folder where there are no records."""
        if device is None or not home.has(RECORDS) or not home.mentions(RECORDS, device.name):
            return None
        from planner.records import Store, nearest

        return nearest(Store().read(aside=False).records, device, self.spec, self.resolved)

    @cached_property
    def closed(self) -> Job:
        """The same run in closed form, which knows the traps and plans changes, whichever engine answers."""
        return self if self.engine == "analytic" else Job(self.spec, self.recipe, self.stack)

    @cached_property
    def settings(self) -> AllocatorSettings:
        """What PYTORCH_CUDA_ALLOC_CONF or PYTORCH_ALLOC_CONF says here."""
        return AllocatorSettings.from_environment()

    def simulations(self, device: Device | None) -> tuple[Simulation, ...]:
        """The run in the allocator, and in other orders of loading where the stack leaves that to chance."""
        from planner.simulation import Simulation

        found = self.analysis(device)
        if found.run_key not in self._simulated:
            histories = (lambda: found.history, *found.other_histories())
            self._simulated[found.run_key] = tuple(Simulation(history, self.settings) for history in histories)
        return self._simulated[found.run_key]

    def begin(self, cards: Sequence[Device]) -> None:
        """Start the runs that the cards' verdicts need, beside what the caller does next."""
        for card in cards:
            if not self._is_refused(card):
                self.simulations(card)[0].begin()

    def _is_refused(self, device: Device) -> bool:
        """Whether what rests on any card is more than this one has."""
        return self.analysis(None).resting_bytes > verdicts_.usable_bytes(device)

    def verdict(self, device: Device, *, explains: bool = True) -> Verdict:
        """The verdict of a card."""
        found = self.analysis(device)
        phase = found.ledger.high[0].value
        return verdicts_.judge(self.simulations(device), device, phase, found.ledger.engine, explains=explains)

    def runs(self, device: Device) -> bool:
        """Whether it comes to its end on a card, a tight fit included: the verdict's question alone."""
        return self.simulations(device)[0].runs_on(verdicts_.usable_bytes(device), device.total_bytes)

    def changed(self, knobs: dict[str, Any]) -> Job:
        """The same with some knobs changed."""
        recipe, asked = self.recipe.model_copy(update=knobs), {**self.asked, **knobs}
        return Job(self.spec, recipe, self.stack, asked, self.options, self.engine, self.progress, self.every_layer)

    def outcome(self, device: Device | None) -> advice.Outcome:
        """What the run allocates, and the card's verdict: a suggestion's measure."""
        nbytes = self.analysis(device).ledger.high[1]
        if device is None:
            return advice.Outcome(nbytes)
        return advice.Outcome(nbytes, nbytes <= verdicts_.usable_bytes(device), partial(self.verdict, device))

    def judge(self, cards: Sequence[Device]) -> tuple[CardVerdict, ...]:
        """The verdict of each card, the smallest first."""
        return tuple(CardVerdict(device_report(card), self.verdict(card, explains=False)) for card in _by_size(cards))

    def outcomes(self, cards: Sequence[Device]) -> tuple[CardOutcome, ...]:
        """The outcome of each card, the smallest first."""
        return tuple(CardOutcome(card.name, verdicts_.budget_bytes(card), self.outcome_on(card)) for card in _by_size(cards))

    def outcome_on(self, device: Device) -> Outcome:
        """The verdict's outcome; a card that has not even room for what rests needs no run."""
        if self._is_refused(device):
            return "does_not_fit"
        return verdicts_.outcome_of(self.simulations(device), device, self.analysis(device).ledger.engine)

    def suggest(self, device: Device | None) -> tuple[Suggestion, ...]:
        """Changed recipes, planned again: in closed form, whatever the engine."""
        try:
            current = self.closed.outcome(device)
        except QplanError:  # a model that the closed form does not know
            return ()
        return advice.suggest(self._advised(device), current, self._planner(device))

    def make_it_fit(self, device: Device | None) -> tuple[dict[str, Any], str] | None:
        """Knobs to change for the card, or for the largest common one, and its name."""
        card = device or max(catalog.common_devices(), key=verdicts_.budget_bytes)
        knobs = advice.make_it_fit(self._advised(card), self._planner(card))
        return None if knobs is None else (knobs, card.name)

    def _advised(self, device: Device | None) -> advice.Job:
        has_flash = device is None or device.compute_capability >= (8, 0)
        return advice.Job(self.spec, self.recipe, self._resolve, has_flash)

    def _resolve(self, recipe: Recipe) -> Recipe:
        return stacks.resolve(recipe, self.stack, self.spec.dtype)

    def _planner(self, device: Device | None) -> advice.Plan:
        return lambda recipe: Job(self.spec, recipe, self.stack).outcome(device)

    def report(self, device: Device | None) -> Report:
        """The whole answer; what only some readers want (other cards, suggestions) waits until they ask."""
        if self.engine == "both":
            self.closed.analysis(device)  # refused before the trace, which takes seconds
        found = self.analysis(device)
        _ = self.settings  # refused now, not when somebody asks for the verdict
        return Report(
            engine=self.engine,
            model=ModelReport(
                id=self.spec.id,
                model_type=self.spec.model_type,
                source=self.spec.source,
                num_parameters=self.spec.num_parameters,
                num_quantized_parameters=found.num_quantized_parameters,
                num_trainable_parameters=found.num_trainable_parameters,
            ),
            recipe=self.resolved.model_dump(),
            stack={**self.stack.versions, "source": self.stack.source},
            phases=phase_reports(found.ledger),
            peak=peak_report(found.ledger, lambda: verdicts_.held(self.simulations(device), device)),
            steady_bytes=found.steady_bytes,
            host=HostReport(found.host_ram_bytes, found.paged_bytes, found.download_bytes),
            device=None if device is None else device_report(device),
            judge=None if device is None else partial(self.verdict, device),
            warnings=found.warnings + _card_warnings(device, self.resolved),
            details=self._details(device, found),
        )

    def _details(self, device: Device | None, found: Analysis) -> Details:
        cards = (device,) if device is not None else catalog.common_devices()
        return Details(
            recipe=self.resolved,
            asked=self.asked,
            options=self.options,
            device=device,
            published_parameters=self.spec.published_parameters,
            ledger=found.ledger,
            find_traps=lambda: self._traps(found, device),
            stack=self.stack,
            begin=lambda: self.begin(cards),
            find_outcomes=lambda: self.outcomes(cards),
            judge_cards=lambda: self.judge(catalog.common_devices()),
            suggest=lambda: self.suggest(device),
            make_it_fit=lambda: self.make_it_fit(device),
            history=lambda: _unrolled(found),
            settings=self.settings,
            draw=draw,
            compare=lambda: self.agreement(device),
            find_near=lambda: self.near(device),
        )

    def _traps(self, found: Analysis, device: Device | None) -> tuple[Finding, ...]:
        """What the closed form knows of hidden costs; of a model that it does not know, nothing."""
        if self.engine != "analytic":
            try:
                found = self.closed.analysis(device)
            except QplanError:
                return ()
        return tuple(Finding(t.name, t.nbytes, t.sentence) for t in found.traps)


def _unrolled(found: Analysis) -> History:
    """Every event of a run, with its names."""
    from planner.unrolling import unroll_history

    return unroll_history(found.history)


def phase_reports(ledger: Ledger) -> tuple[PhaseReport, ...]:
    """The peak of every phase."""
    return tuple(PhaseReport(p.phase.value, p.nbytes, {c.value: size for c, size in p.by_category.items()}) for p in ledger.peaks.values())


def peak_report(ledger: Ledger, hold: Callable[[], Held]) -> PeakReport:
    """The highest peak; what the process holds then is found when somebody asks."""
    peak = ledger.peak()
    return PeakReport(peak.phase.value, peak.nbytes, {c.value: size for c, size in peak.by_category.items()}, hold)


def draw(report: Report, path: str | os.PathLike[str] | None, whole_run: bool) -> Picture:
    """A report's memory over time; what draws is loaded when somebody asks."""
    from planner.render import timeline

    if path is not None:
        timeline.check(path)
    picture = timeline.picture(report, whole_run=whole_run)
    if path is not None:
        picture.save(path)
    return picture


def _by_size(cards: Sequence[Device]) -> list[Device]:
    return sorted(cards, key=lambda card: (verdicts_.budget_bytes(card), card.name))


def device_report(device: Device) -> DeviceReport:
    """The card; what it gives to tensors is what the context and other processes leave."""
    context = verdicts_.context_of(device).nbytes
    return DeviceReport(device.name, device.total_bytes, context, verdicts_.usable_bytes(device))


def _own_figures(own: OwnValues) -> str:
    """What of a card's own an estimate takes, with the verb."""
    names = [f"the CUDA context ({human(own.context_bytes)})"]
    names += ["cuBLAS's workspaces"] * (own.workspace_bytes is not None)
    return f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'}"


def _card_warnings(device: Device | None, recipe: Recipe) -> tuple[str, ...]:
    """What the named card changes that the numbers do not show."""
    found = []
    if device is None and home.has(OWN_VALUES):
        own = ((card.name, card.own) for card in catalog.common_devices())
        found += [f"{name}: {_own_figures(values)} measured here: {values.measured}" for name, values in own if values]
    if device is not None and device.name.startswith("AMD"):
        found.append(f"{device.name} is planned as a CUDA card would be: ROCm's context, workspaces and kernels differ")
    if device is not None and device.own is not None:
        found.append(f"{_own_figures(device.own)} measured on this card: {device.own.measured}")
    if device is not None and not device.bf16 and "bf16" in (recipe.mixed_precision, recipe.compute_dtype):
        usual = "--compute-dtype fp16 --mixed-precision fp16 --dtype fp16"
        found.append(f"{device.name} has no bf16 arithmetic: torch emulates it, slowly; most runs there use {usual}")
    return tuple(found)
