"""
The closed-form engine: formulas say how many bytes, the schedule says when, and no torch is needed.

What rests in memory comes from `formulas`. The step is the family's decoder run on a `Tape` whose operations allocate what the
real ones do; of layers that are alike the first and the last are run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import field
from typing import TYPE_CHECKING, Generic, TypeVar

from planner.architecture import Fields, family_of
from planner.architecture.decoder import Decoder
from planner.device import Device
from planner.engines.analysis import Analysis, host_ram
from planner.engines.layout import Histories, Layouts
from planner.engines.loading import Loading
from planner.engines.modules import Kernels, kernels_of
from planner.engines.resting import Resting, rest
from planner.engines.step import run_step
from planner.engines.traps import find_traps
from planner.errors import UnsupportedModelError
from planner.formulas.workspace import PRODUCT_THREADS, workspace_of
from planner.ledger import Allocation, Category, Ledger, Phase, Rows, Span
from planner.preparation import Preparation, prepare
from planner.recipe import Recipe
from planner.schedule import Tape
from planner.spec import ModelSpec
from planner.stack import Behaviours, Stack, behaviours
from planner.symbolic import Size
from planner.value import Value

if TYPE_CHECKING:
    from planner.engines.course import InOrder
    from planner.engines.reading import Pace
    from planner.history import History

DEFAULT_CAPABILITY = (8, 0)
"""Compute capability that is assumed where no card is named: kernels and workspaces of Ampere."""


def analyse(spec: ModelSpec, recipe: Recipe, stack: Stack, device: Device | None = None) -> Analysis:
    """
    The memory of a fine-tuning run, step by step.

    Args:
        spec: The checkpoint.
        recipe: A resolved recipe.
        stack: The library versions.
        device: The card, for the kernels and workspaces it would use.

    Raises:
        UnsupportedModelError: The closed form does not know the family's step.
        UnsupportedRecipeError: The real stack would refuse the recipe on this model.
    """
    capability = device.compute_capability if device else DEFAULT_CAPABILITY
    base = foundation_of(spec, recipe, stack)
    known, preparation, resting = base.known, base.preparation, base.resting
    kernels = kernels_of(preparation, recipe, capability)
    steps, spans = base.layouts(recipe, kernels).steps(recipe)

    end = spans[-1].end
    rows = Rows(resting.rows)
    rows.ends = [until or end for until in rows.ends]
    workspace = workspace_of(device, capability)
    for thread in PRODUCT_THREADS:
        name = f"cuBLAS workspace of the {thread} thread"
        rows.add(Allocation(name, Category.WORKSPACE, workspace, resting.prepare_end, end))
    rows.extend(steps)
    ledger = Ledger("analytic", rows, (Span(Phase.PREPARE, 0, resting.prepare_end), *spans))
    return Analysis(
        ledger=ledger,
        steady_bytes=resting.steady_bytes + len(PRODUCT_THREADS) * workspace,
        resting_bytes=resting.steady_bytes,
        num_quantized_parameters=preparation.num_quantized_parameters,
        num_trainable_parameters=preparation.num_trainable_parameters,
        paged_bytes=resting.managed_bytes,
        host_ram_bytes=host_ram(spec, recipe, known) + resting.host_bytes,
        download_bytes=spec.num_parameters * spec.dtype.num_bytes,
        _write=lambda pace: _course(spec, base, recipe, kernels, workspace, pace),
        run_key=(kernels, workspace),
        reading=known.reading,
        _find_traps=lambda: find_traps(preparation, recipe, lambda r: analyse(spec, r, stack, device).ledger.high[1]),
    )


def _course(spec: ModelSpec, base: _Foundation, recipe: Recipe, kernels: Kernels, workspace: int, pace: Pace) -> History:
    """The history; its modules are loaded when somebody asks. Cards that differ in their workspaces alone share all but those sizes."""
    from planner.engines.course import Course

    def write(recipe: Recipe) -> History:
        course = Course(spec, base.decoder, base.preparation, recipe, base.known, base.resting, kernels, workspace, share)
        return course.write(pace)

    def share(recipe: Recipe, run: Callable[[], InOrder]) -> InOrder:
        if isinstance(vars(recipe)["batch_size"], Size):  # a recording's own
            return run()
        return base.known_steps.get((kernels, *_values(recipe)), run)

    key = (kernels, pace, *_values(recipe, _BATCH))
    return base.known_histories.get(key, lambda: Histories(write)).history(recipe).with_workspaces(workspace)


_STEP_ONLY = frozenset({"batch_size", "seq_len", "grad_accum", "max_grad_norm", "padding", "packing", "attn"})
"""Knobs of a recipe that change the step but nothing that rests in memory."""

_ADAPTERS = frozenset({
    "rank", "lora_alpha", "targets", "rank_pattern", "modules_to_save", "rslora", "dora", "dropout", "adapter_dtype", "optim",
    "compute_dtype", "loss", "gradient_checkpointing", "use_reentrant", "mixed_precision",
})  # fmt: skip
"""Knobs that change nothing about how the base model is loaded."""

_BATCH = frozenset({"batch_size", "seq_len"})

_K = TypeVar("_K")
_V = TypeVar("_V")


class _Recent(Generic[_K, _V]):
    """The last few answers: a sweep over batches, or over cards, asks for the same ones again and again."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.answers: OrderedDict[_K, _V] = OrderedDict()

    def get(self, key: _K, make: Callable[[], _V]) -> _V:
        """The answer for a key, made where it is not known."""
        if key not in self.answers:
            self.answers[key] = make()
            if len(self.answers) > self.most:
                self.answers.popitem(last=False)
        return self.answers[key]


class _Foundation(Value, eq=False):
    """What depends neither on the batch nor on the card, and the steps that were planned on it."""

    known: Behaviours
    decoder: Decoder
    preparation: Preparation
    resting: Resting
    known_layouts: _Recent[tuple[object, ...], Layouts] = field(default_factory=lambda: _Recent(16))
    known_histories: _Recent[tuple[object, ...], Histories] = field(default_factory=lambda: _Recent(16))
    known_steps: _Recent[tuple[object, ...], InOrder] = field(default_factory=lambda: _Recent(2))

    def layouts(self, recipe: Recipe, kernels: Kernels) -> Layouts:
        """The steps of a recipe, whatever its batch, by the kernels that the card runs."""

        def run(recipe: Recipe) -> Tape:
            return run_step(self.decoder, self.preparation, recipe, self.known, self.resting, kernels)

        return self.known_layouts.get((kernels, *_values(recipe, _BATCH)), lambda: Layouts(run, self.resting.prepare_end))


_foundations: _Recent[tuple[object, ...], _Foundation] = _Recent(64)
_loadings: _Recent[tuple[object, ...], Loading] = _Recent(16)


def _values(recipe: Recipe, leave_out: frozenset[str] = frozenset()) -> tuple[object, ...]:
    """A recipe's knobs as a key."""
    return tuple(
        tuple(value.items()) if isinstance(value, dict) else value for name, value in recipe.__dict__.items() if name not in leave_out
    )


def foundation_of(spec: ModelSpec, recipe: Recipe, stack: Stack) -> _Foundation:
    """
    What of a run hangs neither on the batch nor on the card.

    Args:
        spec: The checkpoint.
        recipe: A resolved recipe.
        stack: The library versions.

    Raises:
        UnsupportedModelError: The closed form does not know the family's step.
        UnsupportedRecipeError: The real stack would refuse the recipe on this model.
    """

    def make() -> _Foundation:
        known = behaviours(stack, recipe)
        preparation = prepare(spec, recipe, known)
        decoder = decoder_of(spec)
        resting = rest(spec, preparation, recipe, decoder.reaches)
        loading = _loadings.get((spec, _values(recipe, _STEP_ONLY | _ADAPTERS), stack_key), lambda: Loading(preparation, recipe, known))
        unsplit = loading.unsplit_bytes(preparation)
        resting.add("remainders that are not split off weights", Category.PARAMETER, unsplit, formula="loading, replayed")
        return _Foundation(known, decoder, preparation, resting)

    stack_key = tuple(stack.versions.items())
    return _foundations.get((spec, _values(recipe, _STEP_ONLY), stack_key), make)


def decoder_of(spec: ModelSpec) -> Decoder:
    """
    The structure of a spec's text decoder.

    Raises:
        UnsupportedModelError: The closed form does not know how this family steps.
    """
    family = family_of(spec.model_type)
    if family.decoder is None:
        needs = family.needs or "its layers' forward pass"
        raise UnsupportedModelError(
            f"{spec.id} is a `{spec.model_type}`, whose training step the closed form does not know yet: it needs {needs}",
            hint='pass --engine traced, which runs the installed libraries and needs `pip install "qplan[torch]"`',
        )
    return family.decoder(Fields(spec.config))
