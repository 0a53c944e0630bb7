"""
The whole run as the closed form sees it, event by event: the model arrives, then two steps, each storage by itself.

Layers run in their order here, since an allocator's holes hang on it; of a stretch that repeats, the first, the second and the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from planner.engines.arrival import Arrival, placed
from planner.engines.optimizing import Trained, clip, make_states, update
from planner.engines.reading import IN_TURN, Pace
from planner.engines.resting import Resting, trained_tensors
from planner.engines.step import Step
from planner.formulas.workspace import PRODUCT_THREADS
from planner.history import History, Stretch
from planner.ledger import Category, Phase
from planner.repetition import Repetition, repetition
from planner.unrolling import NotRepeatable, unroll_events

if TYPE_CHECKING:
    from planner.architecture.decoder import Decoder
    from planner.engines.modules import Kernels
    from planner.preparation import Preparation
    from planner.recipe import Recipe
    from planner.schedule import Tape
    from planner.spec import ModelSpec
    from planner.stack import Behaviours
    from planner.tensors import Storage

_STEPS = 2
"""Steps of a history: states appear in the first, the second is like all that follow."""


class InOrder(Step):
    """
    A step with its layers in order, of which a repeated stretch has three instances.

    Attributes:
        leaves_out: Whether instances between are left out; else every layer is run, and none counts as repeated.
        repeats: The stretch.
        instances: The layers of each instance that is run.
    """

    leaves_out = True
    repeats = Repetition(0, 1, 0)
    instances: tuple[range, ...] = ()

    def schedule(self, input_needs_grad: bool) -> list[tuple[int | None, int, Sequence[int]]]:
        """What comes before the stretch, its instances, what comes after."""
        keys = self.kinds(input_needs_grad) if self.leaves_out else []
        start, period, count = self.repeats = repetition(keys)
        firsts = (start, start + period, start + (count - 1) * period) if count else ()
        self.instances = tuple(range(first, first + period) for first in firsts)
        regions: list[tuple[int | None, int, Sequence[int]]] = [(i, 1, layers) for i, layers in enumerate(self.instances)]
        end = start + period * count
        return [(None, 1, range(start)), *regions, (None, 1, range(end, len(self.decoder.layers)))]

    def accumulated(self, resting: Resting) -> Storage | None:
        """They have events of their own here."""

    def optimizer_step(self, resting: Resting) -> None:
        """The gradients' end; the rest is written parameter by parameter."""
        self.zero_grad()

    def instance_of(self, layer: int) -> int | None:
        """Which instance a layer is in."""
        return next((i for i, layers in enumerate(self.instances) if layer in layers), None)


Share = Callable[["Recipe", Callable[[], InOrder]], InOrder]
"""From a recipe and what runs its step to the step, which may have been run before."""


class Course:
    """
    A run to write down.

    Args:
        spec: The checkpoint.
        decoder: Its structure.
        preparation: Its modules.
        recipe: The resolved recipe.
        known: What the stack does.
        resting: What the optimizer walks over.
        kernels: What the card runs.
        workspace: Bytes of one cuBLAS workspace on the card.
        share: Gives the step of every layer that another order of loading has run with the same recipe, or runs it.
    """

    def __init__(
        self,
        spec: ModelSpec,
        decoder: Decoder,
        preparation: Preparation,
        recipe: Recipe,
        known: Behaviours,
        resting: Resting,
        kernels: Kernels,
        workspace: int,
        share: Share = lambda _, run: run(),
    ) -> None:
        self.spec, self.decoder, self.preparation, self.recipe, self.known = spec, decoder, preparation, recipe, known
        self.resting, self.kernels, self.workspace = resting, kernels, workspace
        self.share = share
        self.history = History()

    def write(self, pace: Pace = IN_TURN) -> History:
        """
        The history.

        Args:
            pace: Of the thread that quantises, where others read ahead of it: they reach into the next layers, so that no layer
                arrives as another does, and all are run.
        """
        if pace is not IN_TURN:
            return self._write(pace, leaves_out=False)
        found = self._write(pace, leaves_out=True)
        try:
            unroll_events(found)
        except NotRepeatable:
            return self._write(pace, leaves_out=False)
        return found

    def _write(self, pace: Pace, *, leaves_out: bool) -> History:
        """The history, of every layer or of three instances of those that repeat."""
        h = self.history = History()
        first = self._run(1, leaves_out=leaves_out)
        again = self._run(2, leaves_out=leaves_out) if self.recipe.grad_accum > 1 else None
        start, period, count = first.repeats
        h.repeat, h.layers = count, period
        layers = range(len(self.decoder.layers))
        run = frozenset(i for i in layers if not count or not start + 2 * period <= i < start + (count - 1) * period)
        modules = placed(self.preparation, self.decoder.layer_prefix, run, first.instance_of)
        Arrival(h, self.recipe, self.known).write(modules, self.preparation, self.spec.buffers, pace)
        trained = [
            Trained(parameter, module.name, module.owner)
            for module in modules
            if self.decoder.reaches(module.row.name)
            for parameter in trained_tensors(module.row, self.recipe)
        ]
        for step in range(_STEPS):
            self._step(first, again, trained, is_first=step == 0)
        return h

    def _run(self, grad_accum: int, *, leaves_out: bool) -> InOrder:
        """A step on a tape of its own; with accumulation, one that finds gradients."""
        recipe = self.recipe.unchecked(grad_accum=grad_accum)

        def run() -> InOrder:
            step = InOrder(self.decoder, self.preparation, recipe, self.known, self.kernels)
            step.leaves_out = leaves_out
            step.run(self.resting)
            return step

        return run() if leaves_out else self.share(recipe, run)

    def _step(self, first: InOrder, again: InOrder | None, trained: list[Trained], *, is_first: bool) -> None:
        """One optimizer step; of its micro-batches the first, which makes the gradients, and one that adds to them."""
        h = self.history
        products = first.t.products if is_first else {}
        passes = [s for s in first.t.segments if s.phase is not Phase.OPTIMIZER_STEP]
        release = range(passes[-1].end, len(first.t.events))
        base = self._storages(first)
        for begin, end, phase, region in ((s.begin, s.end, s.phase, s.region) for s in passes):
            self._events(first.t, range(begin, end), base, phase, region, products)
        if again is not None:
            added = self._storages(again)
            for segment in again.t.segments:
                self._events(again.t, range(segment.begin, segment.end), added, segment.phase, segment.region, {})
            self._events(again.t, range(again.t.segments[-1].end, len(again.t.events)), added, Phase.BACKWARD, None, {})
        begin = len(h.events)
        if self.recipe.max_grad_norm:
            clip(h, trained, [(parameter.numel, count) for parameter, count in self.resting.trainables])
        if is_first:
            make_states(h, str(self.recipe.optim), trained)
        update(h, str(self.recipe.optim), trained)
        h.stretches.append(Stretch(Phase.OPTIMIZER_STEP, begin, len(h.events)))
        self._events(first.t, release, base, Phase.OPTIMIZER_STEP, None, {})

    def _storages(self, step: InOrder) -> int:
        """A tape's storages; returns the index that its first one has."""
        h, t = self.history, step.t
        base, count = len(h.sizes), len(t.storages)
        owners: list[int | None] = [None] * count
        for segment in t.segments:
            if segment.region is not None:
                for event in t.events[segment.begin : segment.end]:
                    if event >= 0:
                        owners[event] = segment.region
        prefixes = [self.decoder.layer_prefix.replace("*", str(layers[0])) if len(layers) == 1 else "" for layers in step.instances]
        sizes, scopes, names, categories = zip(*t.storages, strict=True)
        h.sizes += sizes
        h.names += names
        h.categories += categories
        h.owners += owners
        h.scopes += [scope if owner is None else (prefixes[owner] + scope).rstrip(".") for scope, owner in zip(scopes, owners, strict=True)]
        for storage in t.gradients:
            h.categories[base + storage] = Category.GRADIENT
        return base

    def _events(self, tape: Tape, events: range, base: int, phase: Phase, region: int | None, products: dict[str, int]) -> None:
        """A stretch of a tape's events, with the workspace that the first product of each thread takes."""
        h = self.history
        begin, position = len(h.events), events.start
        for thread in PRODUCT_THREADS:
            at = products.get(thread, -1)
            if events.start < at <= events.stop:
                h.events += [e + base if e >= 0 else e - base for e in tape.events[position:at]]
                h.workspaces.append(h.add(self.workspace, f"cuBLAS workspace of the {thread} thread", Category.WORKSPACE))
                position = at
        h.events += [e + base if e >= 0 else e - base for e in tape.events[position : events.stop]]
        if len(h.events) > begin:
            h.stretches.append(Stretch(phase, begin, len(h.events), region))
