"""One measurement: the model is loaded, prepared and trained for real, in the phases of every engine, and its memory is told."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from planner.engines.measured.realness import Check
from planner.engines.measured.tracker import Tracker, rules
from planner.engines.running.accumulation import Accumulation
from planner.engines.running.blueprint import Blueprint, draw, quiet
from planner.engines.running.building import Building, build, import_libraries
from planner.engines.running.caches import cold
from planner.engines.running.training import Training
from planner.history import History
from planner.recipe import Recipe, make_recipe
from planner.spec import ModelSpec
from planner.stack import behaviours, detect
from planner.value import Value

Tell = Callable[[Mapping[str, Any]], None]
"""Is told what happens, as it does: `{"stage": ...}`, `{"phase": ..., "begins": ...}`."""


class Order(Value):
    """
    What to measure.

    Attributes:
        spec: The model.
        recipe: The resolved recipe.
        weights: `synthetic`, or what `from_pretrained` takes: a Hub id or a folder.
        steps: Measured steps, after one that warms up.
        device: `cpu`, `cuda` or `cuda:N`.
        limit_bytes: On the CPU, what may be alive; None for no end.
        revision: Of a Hub id.
    """

    spec: ModelSpec
    recipe: Recipe
    weights: str = "synthetic"
    steps: int = 2
    device: str = "cpu"
    limit_bytes: int | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, job: Mapping[str, Any]) -> Order:
        """From a job as JSON has it."""
        model = job["model"]
        spec = ModelSpec(model["id"], model["model_type"], model["config"], ())
        more = {name: job[name] for name in ("weights", "steps", "device", "limit_bytes", "revision") if name in job}
        return cls(spec, make_recipe(**job["recipe"]), **more)


class Measurement(Value):
    """
    What was measured on the CPU.

    Attributes:
        history: Every storage.
        losses: Of every forward.
        num_quantized_parameters, num_trainable_parameters: Counts of elements.
    """

    history: History
    losses: list[float]
    num_quantized_parameters: int
    num_trainable_parameters: int


def measure(order: Order, tell: Tell) -> Measurement:
    """
    Measure on the CPU, by storages.

    Args:
        order: What to measure.
        tell: Is told where it is.

    Raises:
        Full: The ceiling is reached.
        NotReal: A step trained nothing.
        UnsupportedModelError: The libraries refuse.
    """
    tracker = Tracker("cpu", rules("cpu"), order.limit_bytes, on_phase=lambda phase, begins: tell({"phase": phase.value, "begins": begins}))
    with ExitStack() as stack:
        stack.enter_context(surroundings())
        import_libraries(order.recipe)
        blueprint = draw(order.spec, order.recipe, every_layer=True)
        stack.enter_context(tracker)
        stack.enter_context(tracker.in_modules())
        Accumulation(tracker)
        tracker.forget()
        _, training = stand(order, blueprint, tracker, stack)
        for _ in range(1 + order.steps):
            training.step()
        training.evaluate()
        training.save()
        assert tracker.check is not None
        return Measurement(tracker.end(), tracker.check.losses, training.num_quantized_parameters, training.num_trainable_parameters)


@contextmanager
def surroundings() -> Iterator[None]:
    """Inside, libraries are quiet and without what they cached, and cycles are not collected by chance."""
    was_enabled = gc.isenabled()
    gc.disable()
    torch.manual_seed(0)
    try:
        with cold(), quiet():
            yield
    finally:
        if was_enabled:
            gc.enable()


def stand(order: Order, blueprint: Blueprint, tracker: Tracker, stack: ExitStack) -> tuple[Building, Training]:
    """The model, ready for its first step, its layers watched; and the training."""
    known = behaviours(detect(), order.recipe)
    tracker.loads_on = tracker.device if order.recipe.is_quantized else "cpu"  # without a device_map a 16-bit model is loaded on the host
    source = None if order.weights == "synthetic" else order.weights
    building = build(blueprint, order.recipe, known, tracker, source, order.revision)
    tracker.check = Check(building.trainable)
    tracker.vocabulary = tracker.vocab_size or 2
    if blueprint.instances is not None:
        layers = building.base.get_submodule(blueprint.instances.path)
        stack.enter_context(blueprint.instances.watched(layers, tracker))
    return building, Training(building, order.recipe, known, tracker, blueprint.instances)
