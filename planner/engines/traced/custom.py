"""A training step that the user wrote, as a history: any PyTorch model, optimizer and loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from planner.engines.running.building import without_launches
from planner.engines.running.tensors import name_gradients, name_model, name_states
from planner.engines.traced.recorder import Recorder
from planner.engines.traced.run import recording
from planner.errors import InvalidRecipeError
from planner.history import History
from planner.ledger import Phase

HOST_LIMIT = 1 << 20
"""Elements from which a tensor that `build` makes on the CPU has no data either: weights that are moved to the card later."""


class Custom:
    """
    What a trace of a user's step saw.

    Attributes:
        history: Every birth and death: what was built, then the steps.
        model_name: The class of the largest model that was built.
        num_parameters, num_trainable_parameters: Counts of its elements.
    """

    def __init__(self, history: History, models: list[nn.Module]) -> None:
        self.history = history
        parameters = {id(p): p for model in models for p in model.parameters()}.values()
        self.num_parameters = sum(p.numel() for p in parameters)
        self.num_trainable_parameters = sum(p.numel() for p in parameters if p.requires_grad)
        largest = max(models, key=lambda m: sum(p.numel() for p in m.parameters()), default=None)
        self.model_name = type(largest).__name__ if largest is not None else "step"


def trace_step(build: Callable[[], Any], step: Callable[..., Any], capability: tuple[int, int], *, steps: int = 2) -> Custom:
    """
    Run a user's own code without data.

    Args:
        build: Makes what a step needs, on `cuda`: a model, an optimizer, whatever else; one object or a tuple.
        step: Runs one step with them, `step(*built)`: forward, backward, `optimizer.step()`, `zero_grad()`.
        capability: Of the card.
        steps: How often; optimizer states appear in the first.

    Raises:
        UnavailableError: torch cannot trace here.
        UnsupportedModelError: An operation cannot be followed: it acts on numbers that only a real run has.
        InvalidRecipeError: Nothing was put on the card.
    """
    with ExitStack() as stack:
        recorder = stack.enter_context(recording(capability))
        stack.enter_context(_kernels_stay_out())
        recorder.inherits = False
        with recorder.during(Phase.LOAD), recorder.making_weights(HOST_LIMIT):
            built = build()
            parts = built if isinstance(built, tuple) else (built,)
            models = [part for part in parts if isinstance(part, nn.Module)]
            optimizers = [part for part in parts if isinstance(part, torch.optim.Optimizer)]
        for model in models:
            name_model(model, recorder)
        stack.enter_context(_phases(recorder, models))
        for _ in range(steps):
            with recorder.during(Phase.FORWARD):
                kept = step(*parts)
                del kept
            for optimizer in optimizers:
                name_states(optimizer, models, recorder)
        history = recorder.end()
        if not history.sizes:
            raise InvalidRecipeError("the step put nothing on the card", hint='build and feed the model with device="cuda"')
        return Custom(history, models)


@contextmanager
def _kernels_stay_out() -> Iterator[None]:
    """TRL's Triton kernels are not launched, where TRL is there at all."""
    try:
        import trl  # noqa: F401
    except ImportError:
        yield
        return
    with without_launches():
        yield


@contextmanager
def _phases(recorder: Recorder, models: list[nn.Module]) -> Iterator[None]:
    """Inside, backward and the optimizers' steps are phases of their own; what follows an optimizer's step belongs to it."""
    run_backward = torch.autograd.backward

    def backward(*args: Any, **kwargs: Any) -> None:
        recorder.move_to(Phase.BACKWARD)
        run_backward(*args, **kwargs)
        for model in models:
            name_gradients(model, recorder)

    def begin(*_: Any) -> None:
        recorder.move_to(Phase.OPTIMIZER_STEP)

    def forward(module: nn.Module, *_: Any) -> None:
        if module in watched and torch._C._current_graph_task_id() == -1:
            recorder.move_to(Phase.FORWARD if torch.is_grad_enabled() else Phase.EVALUATION)

    watched = set(models)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.autograd, "backward", backward))
        for hook in (register_optimizer_step_pre_hook(begin), nn.modules.module.register_module_forward_pre_hook(forward)):
            stack.callback(hook.remove)
        yield


