"""A checkpoint under a recipe, from loading to saving, as a history."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch

from planner.device import Device
from planner.engines.running import building
from planner.engines.running.accumulation import Accumulation
from planner.engines.running.blueprint import draw, quiet
from planner.engines.running.training import Training
from planner.engines.traced import autocast, flash, ghosts, kernels, quantized
from planner.engines.traced.recorder import Recorder
from planner.errors import QplanError, UnsupportedModelError
from planner.formulas.four_bit_kernel import MULTIPROCESSORS
from planner.formulas.workspace import workspace_of
from planner.history import History
from planner.recipe import Recipe
from planner.spec import ModelSpec
from planner.stack import Stack, behaviours
from planner.value import Value

DEFAULT_CAPABILITY = (8, 0)
ENDLESS = 1 << 50
"""Bytes of a card that nothing fills: what a trace loads on, so that no library makes its plans by the card's size."""


class Trace(Value, eq=False):
    """
    What a trace saw.

    Attributes:
        history: Every birth and death; of layers that repeat, three instances.
        num_quantized_parameters, num_trainable_parameters: Counts of elements, in the whole model.
        paged_bytes: Optimizer state in CUDA managed memory, of the whole model.
        num_layers: Layers that were run.
        whole_layers: Layers of the model.
    """

    history: History
    num_quantized_parameters: int
    num_trainable_parameters: int
    paged_bytes: int
    num_layers: int
    whole_layers: int


@contextmanager
def recording(capability: tuple[int, int] | None, workspace_bytes: int | None = None) -> Iterator[Recorder]:
    """
    A recorder under which everything runs as on a card of this compute capability, or as on the CPU where there is none.

    Args:
        capability: Of the card.
        workspace_bytes: One cuBLAS workspace there; None for what the formula says.

    Raises:
        UnavailableError: torch cannot do it here.
    """
    with ExitStack() as stack:
        recorder = stack.enter_context(_on_cpu() if capability is None else _on_card(capability, workspace_bytes))
        stack.enter_context(recorder)
        stack.enter_context(mock.patch.object(torch.cuda, "empty_cache", recorder.flush))
        stack.enter_context(recorder.in_modules())
        stack.enter_context(quantized.parameters(recorder.device))
        if recorder.device == "cuda":
            stack.enter_context(autocast.cuda_autocast())
        stack.enter_context(torch.autograd.set_multithreading_enabled(mode=False))  # backward in this thread, under this recorder
        Accumulation(recorder)
        recorder.forget()
        was_enabled = gc.isenabled()
        gc.disable()  # cycles are collected at any time; a step of the libraries makes none that hold tensors
        if was_enabled:
            stack.callback(gc.enable)
        yield recorder


@contextmanager
def _on_card(capability: tuple[int, int], workspace_bytes: int | None) -> Iterator[Recorder]:
    """What CUDA does in its kernels, and the workspaces of its libraries."""
    kernels.capability = capability
    with ghosts.card(capability, ENDLESS, MULTIPROCESSORS.get(capability, 108)):
        kernels.register()
        recorder = Recorder({**kernels.rules(), **quantized.rules()})
        workspaces = kernels.Workspaces(workspace_bytes)
        recorder.after = {**dict.fromkeys(kernels.PRODUCTS, workspaces), **kernels.SCRATCH}
        yield recorder


@contextmanager
def _on_cpu() -> Iterator[Recorder]:
    """C++ makes its choices by itself; what is made from numbers, not from a shape, is real."""
    with ghosts.host():
        recorder = Recorder({**kernels.rules(), **quantized.rules("cpu")}, "cpu")
        with recorder.making_weights(0):
            yield recorder


def _silently(_: str) -> None:
    """Nobody asked."""


@contextmanager
def _refusals(spec: ModelSpec) -> Iterator[None]:
    """
    What the libraries raise in a trace, they raise in a real run.

    Raises:
        UnsupportedModelError: In their words.
    """
    try:
        yield
    except QplanError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        words = str(error).strip().splitlines()
        raise UnsupportedModelError(
            f"{spec.id} stops in {Path(frame.filename).name}:{frame.lineno} with {type(error).__name__}: {words[0] if words else error!r}",
            hint="a real run of the installed libraries would stop there too: change --targets, --attn or --loss, or their versions",
        ) from error


Progress = Callable[[str], None]
"""Is told what a trace is at, in a few words."""


def trace_run(
    spec: ModelSpec,
    recipe: Recipe,
    stack: Stack,
    device: Device | None = None,
    *,
    every_layer: bool = False,
    progress: Progress | None = None,
    on_cpu: bool = False,
) -> Trace:
    """
    The memory of a fine-tuning run, by the installed libraries' own code.

    Args:
        spec: The checkpoint.
        recipe: A resolved recipe.
        stack: The versions that are installed.
        device: The card, for the kernels and workspaces that it would use.
        every_layer: Whether to run all layers, whatever repeats.
        progress: Is told what the trace is at.
        on_cpu: Whether the run is one on the CPU, rather than on a card.

    Raises:
        UnavailableError: torch cannot trace here.
        UnsupportedModelError: The model cannot be built, or an operation of it cannot be followed.
    """
    tell = progress or _silently
    capability = None if on_cpu else device.compute_capability if device else DEFAULT_CAPABILITY
    tell(f"instantiating {spec.id}")
    known = behaviours(stack, recipe)
    with ExitStack() as patches, _refusals(spec):
        if recipe.attn == "flash_attention_2":
            patches.enter_context(flash.available())
        blueprint = draw(spec, recipe, every_layer=every_layer)
        if on_cpu:
            with quiet():
                building.import_libraries(recipe)
        recorder = patches.enter_context(recording(capability, None if capability is None else workspace_of(device, capability)))
        if recipe.loss == "chunked" and not on_cpu:
            patches.enter_context(building.without_launches())
        patches.enter_context(quiet())
        tell(f"loading {blueprint.num_layers} of {blueprint.whole_layers} layers")
        built = building.build(blueprint, recipe, known, recorder)
        instances = blueprint.instances
        if instances is not None:
            layers = built.base.get_submodule(instances.path)
            patches.enter_context(instances.watched(layers, recorder))
        training = Training(built, recipe, known, recorder, instances)
        for what, run in (
            ("first step", training.step),
            ("steady step", training.step),
            ("evaluation", training.evaluate),
            ("save", training.save),
        ):
            tell(what)
            run()
        history = recorder.end()
        if instances is not None:
            history.repeat, history.layers = instances.repeated.count, instances.repeated.period
            true = {scope: instances.true_path(scope) for scope in set(history.scopes)}
            history.scopes = [true[scope] for scope in history.scopes]
        return Trace(
            history=history,
            num_quantized_parameters=training.num_quantized_parameters,
            num_trainable_parameters=training.num_trainable_parameters,
            paged_bytes=training.paged_bytes,
            num_layers=blueprint.num_layers,
            whole_layers=blueprint.whole_layers,
        )
