"""What an optimizer's step allocates, parameter by parameter: norms, states, temporaries, in their order."""

from __future__ import annotations

from collections.abc import Sequence

from planner.dtypes import DType
from planner.formulas.gradients import clip_grad_norm
from planner.formulas.optimizer import MIN_8BIT_ELEMENTS, VARIANTS, Loop, Parameter, Rule, Variant, shared_states, states
from planner.history import History
from planner.ledger import Category
from planner.value import NamedTuple


class Trained(NamedTuple):
    """A trained tensor, its module, and the instance of the repeated layers that it belongs to."""

    parameter: Parameter
    scope: str
    owner: int | None


def clip(history: History, trained: Sequence[Trained], numels: Sequence[tuple[int, int]]) -> None:
    """
    `clip_grad_norm_`.

    Args:
        history: Where.
        trained: The parameters that are written out.
        numels: Of all parameters: elements, and how many have so many. The partial and the stacked norms are as long as they are many.

    Source:
        formulas.gradients, clip_grad_norm.
    """
    moments = clip_grad_norm(numels, trained[0].parameter.dtype)
    (partial, norm), (_, stack, total), (_, *coefficients) = moments
    add, temporary = history.add, Category.TEMPORARY
    first = add(partial.nbytes, partial.name, temporary)
    norms = [add(norm.nbytes, norm.name, temporary, item.scope, item.owner) for item in trained]
    history.drop(first)
    held = [add(tensor.nbytes, tensor.name, temporary) for tensor in (stack, total)]
    history.drop(held[0])
    for storage in norms:
        history.drop(storage)
    held = [held[1], *(add(tensor.nbytes, tensor.name, temporary) for tensor in coefficients)]
    for storage in held:
        history.drop(storage)


def make_states(history: History, optim: str, trained: Sequence[Trained]) -> None:
    """The states that stay, parameter after parameter; tables for 8 bits come with the first parameter that has such states."""
    variant, shared = VARIANTS[optim], False
    for parameter, scope, owner in trained:
        if not shared and parameter.numel >= MIN_8BIT_ELEMENTS:
            shared = True
            for state in shared_states(variant, (parameter,)):
                history.add(state.device_bytes, state.name, Category.OPTIMIZER_STATE)
        for state in states(variant, parameter):
            if state.device_bytes:
                history.add(state.device_bytes, state.name, Category.OPTIMIZER_STATE, scope, owner)


def update(history: History, optim: str, trained: Sequence[Trained]) -> None:
    """What one step makes beside the states; fused kernels, bitsandbytes' and SGD's make nothing."""
    variant = VARIANTS[optim]
    if variant.loop is Loop.KERNEL or variant.rule in (Rule.SGD, Rule.SGD_MOMENTUM):
        return
    if variant.loop is Loop.FOREACH:
        roots = [history.add(p.nbytes, "square roots of second moments", Category.TEMPORARY, scope, owner) for p, scope, owner in trained]
        for root in roots:
            history.drop(root)
        return
    _one_by_one(history, variant, trained)


def _one_by_one(history: History, variant: Variant, trained: Sequence[Trained]) -> None:
    """
    One parameter after the other; what a name holds lives until the next parameter has its own, but, so that instances of repeated layers
    stay apart, not into the next of those.

    Source:
        formulas.optimizer, _single_adamw, _torch_adafactor, _transformers_adafactor.
    """
    rule = _single_adamw if variant.rule is Rule.ADAMW else _torch_adafactor if variant.library == "torch" else _transformers_adafactor
    names = _Names(history)
    before: int | None = None
    for item in trained:
        if before is not None and item.owner is not None and item.owner != before:
            names.clear()
        before = item.owner
        names.item = item
        rule(names, item.parameter)
    names.clear()


class _Names:
    """The names of a Python function and the storages that they hold; what is made belongs to the parameter in turn."""

    item: Trained

    def __init__(self, history: History) -> None:
        self.history = history
        self.held: dict[str, int] = {}

    def make(self, nbytes: int, what: str) -> int:
        """A storage."""
        return self.history.add(nbytes, what, Category.TEMPORARY, self.item.scope, self.item.owner)

    def let(self, name: str, storage: int) -> None:
        """A name takes a storage, and lets go of the one before."""
        before = self.held.get(name)
        self.held[name] = storage
        if before is not None:
            self.history.drop(before)

    def clear(self) -> None:
        """The function returns."""
        for storage in self.held.values():
            self.history.drop(storage)
        self.held.clear()


def _single_adamw(names: _Names, parameter: Parameter) -> None:
    root = names.make(parameter.nbytes, "square root")
    quotient = names.make(parameter.nbytes, "denominator")
    names.history.drop(root)
    names.let("denominator", quotient)


def _torch_adafactor(names: _Names, parameter: Parameter) -> None:
    size = parameter.dtype.num_bytes
    if len(parameter.shape) > 1:
        names.let("row mean", names.make(parameter.num_rows * size, "row mean"))
        names.let("column mean", names.make(parameter.num_columns * size, "column mean"))
    else:
        names.let("squared gradient", names.make(parameter.nbytes, "squared gradient"))
    names.let("update", names.make(parameter.nbytes, "update"))


def _transformers_adafactor(names: _Names, parameter: Parameter) -> None:
    width = DType.FP32.num_bytes
    size, drop = parameter.numel * width, names.history.drop
    gradient = names.make(size, "gradient in fp32") if parameter.dtype.is_half else None
    if parameter.dtype.is_half:
        names.let("parameter", names.make(size, "parameter in fp32"))
    elif "parameter" in names.held:
        drop(names.held.pop("parameter"))
    squared = names.make(size, "squared gradient")
    update = names.make(size, "update")
    drop(squared)
    names.let("update", update)
    factors = (parameter.num_rows, parameter.num_columns) if len(parameter.shape) > 1 else ()
    held = [names.make(n * width, "inverse root") for n in factors]
    if factors:
        names.let("update", names.make(size, "update"))
    for factor in held:
        drop(factor)
    drop(names.make(size, "negative update"))
    if gradient is not None:
        drop(gradient)
