"""`trace`: plan any PyTorch training step, by running it without data on a card that is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from planner import catalog, job
from planner import verdict as verdicts
from planner.allocator import AllocatorSettings
from planner.bookkeeping import keep_books
from planner.device import Device
from planner.engines.installed import traced_engine
from planner.errors import InvalidRecipeError
from planner.recipe import Recipe
from planner.report import CardOutcome, CardVerdict, Details, HostReport, ModelReport, Report, Verdict
from planner.simulation import Simulation
from planner.stack import detect

if TYPE_CHECKING:
    from planner.engines.traced import Custom


def trace(
    build: Callable[[], Any],
    step: Callable[..., Any],
    *,
    gpu: str | Device | None = None,
    steps: int = 2,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """
    What a training step that you wrote needs of a GPU, and whether a card has it.

    Your code runs as it is: `cuda` is a card without memory of its own, tensors have shapes and no numbers. Nothing is computed, nothing
    is downloaded, and no GPU is needed. `.item()` of a float gives 0.0; code that acts on other numbers cannot be followed and is
    refused. It wants a process of its own: one that trains on CUDA cannot trace.

    Args:
        build: Makes what a step needs, on `cuda`: a model, an optimizer, whatever else; one object or a tuple.
        step: Runs one step with them, `step(*built)`: forward, backward, `optimizer.step()`, `optimizer.zero_grad()`.
        gpu: A card's name (`a6000`), its size (`80GiB`) or a `Device`; None for one like most.
        steps: How often to run it; optimizer states appear in the first.
        progress: Is told what the trace is at.

    Returns:
        A report, as `estimate` gives it, without a recipe.

    Raises:
        MissingExtraError: `qplan[torch]` is not installed.
        UnavailableError: torch cannot trace here.
        UnsupportedModelError: The step acts on numbers that only a real run has.

    >>> import torch
    >>> def build():
    ...     model = torch.nn.Linear(4096, 4096).cuda()
    ...     return model, torch.optim.AdamW(model.parameters())
    >>> def step(model, optimizer):
    ...     model(torch.randn(64, 4096, device="cuda")).square().mean().backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> trace(build, step, gpu="t4").verdict.outcome
    'fits'
    """
    if not callable(build) or not callable(step):
        raise InvalidRecipeError("build and step must be functions", hint="pass trace(build, step), not their results")
    if steps < 1:
        raise InvalidRecipeError(f"steps is {steps}; it must be 1 or more", hint="2 shows the optimizer's states at rest")
    device = catalog.find_device(gpu) if isinstance(gpu, str) else gpu
    traced = traced_engine(None, progress)
    capability = device.compute_capability if device else traced.DEFAULT_CAPABILITY
    if progress:
        progress("running the step")
    return _report(traced.trace_step(build, step, capability, steps=steps), device)


def _report(found: Custom, device: Device | None) -> Report:
    """The answer, in the shape of an estimate's."""
    settings = AllocatorSettings.from_environment()
    ledger = keep_books("traced", found.history, settings)
    simulation = Simulation(lambda: found.history, settings)
    peak = ledger.peak()

    def judge(card: Device) -> Verdict:
        return verdicts.judge([simulation], card, peak.phase.value, "traced")

    def find_outcomes() -> tuple[CardOutcome, ...]:
        return tuple(
            CardOutcome(card.name, verdicts.budget_bytes(card), verdicts.outcome_of([simulation], card, "traced"))
            for card in ((device,) if device is not None else catalog.common_devices())
        )

    def judge_cards() -> tuple[CardVerdict, ...]:
        return tuple(CardVerdict(job.device_report(card), judge(card)) for card in catalog.common_devices())

    stack = detect()
    return Report(
        engine="traced",
        model=ModelReport(found.model_name, "custom", "python", found.num_parameters, 0, found.num_trainable_parameters),
        recipe={},
        stack={**stack.versions, "source": stack.source},
        phases=job.phase_reports(ledger),
        peak=job.peak_report(ledger, lambda: verdicts.held([simulation], device)),
        steady_bytes=ledger.curve[-1],
        host=HostReport(0, 0, 0),
        device=None if device is None else job.device_report(device),
        judge=None if device is None else lambda: judge(device),
        details=Details(
            recipe=Recipe(),
            asked={},
            options={},
            device=device,
            published_parameters=None,
            ledger=ledger,
            find_traps=tuple,
            find_outcomes=find_outcomes,
            judge_cards=judge_cards,
            suggest=tuple,
            make_it_fit=lambda: None,
            stack=stack,
            history=lambda: found.history,
            settings=settings,
            draw=job.draw,
        ),
    )
