"""Optimizers: what each keeps for a parameter, where it keeps it, and what one step makes and drops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum

from planner.dtypes import DType
from planner.formulas.blocks import allocated, larger, largest
from planner.units import ceil_div
from planner.value import NamedTuple

# bitsandbytes@0.50.2, optim/optimizer.py: Optimizer2State(min_8bit_size=4096), init_state(blocksize=256), get_state_buffer(1e5).
MIN_8BIT_ELEMENTS = 4096
STATE_BLOCK_ELEMENTS = 256
MIN_PAGED_ELEMENTS = 100_000
MAP_BYTES = 256 * DType.FP32.num_bytes


class Rule(str, Enum):
    """How a parameter is updated."""

    ADAMW = "adamw"
    LION = "lion"
    SGD = "sgd"
    SGD_MOMENTUM = "sgd_momentum"
    ADAFACTOR = "adafactor"


class Loop(str, Enum):
    """How an optimizer walks over its parameters: this decides what a step makes."""

    FOREACH = "foreach"  # all at once, one operation after the other
    SINGLE = "single"  # one parameter after the other, in separate operations
    KERNEL = "kernel"  # one kernel does the whole update


class Variant(NamedTuple):
    """
    One optimizer as a library runs it on CUDA.

    Attributes:
        library: `torch`, `bitsandbytes` or `transformers`.
        rule: How a parameter is updated.
        loop: How it walks over them.
        bits: Of a state's element; 0 where it follows the parameter.
        paged: Whether large states are in CUDA managed memory.
    """

    library: str
    rule: Rule
    loop: Loop
    bits: int = 0
    paged: bool = False


def _bitsandbytes(rule: Rule, bits: int, *, paged: bool = False) -> Variant:
    return Variant("bitsandbytes", rule, Loop.KERNEL, bits, paged)


VARIANTS: dict[str, Variant] = {
    "adamw_torch": Variant("torch", Rule.ADAMW, Loop.FOREACH),
    "adamw_torch_foreach": Variant("torch", Rule.ADAMW, Loop.FOREACH),
    "adamw_torch_single": Variant("torch", Rule.ADAMW, Loop.SINGLE),
    "adamw_torch_fused": Variant("torch", Rule.ADAMW, Loop.KERNEL),
    "sgd": Variant("torch", Rule.SGD, Loop.FOREACH),
    "sgd_momentum": Variant("torch", Rule.SGD_MOMENTUM, Loop.FOREACH),
    "adafactor_torch": Variant("torch", Rule.ADAFACTOR, Loop.SINGLE),
    "adafactor": Variant("transformers", Rule.ADAFACTOR, Loop.SINGLE, bits=32),
    "adamw_8bit": _bitsandbytes(Rule.ADAMW, 8),
    "adamw_32bit": _bitsandbytes(Rule.ADAMW, 32),
    "paged_adamw_8bit": _bitsandbytes(Rule.ADAMW, 8, paged=True),
    "paged_adamw_32bit": _bitsandbytes(Rule.ADAMW, 32, paged=True),
    "lion_8bit": _bitsandbytes(Rule.LION, 8),
    "lion_32bit": _bitsandbytes(Rule.LION, 32),
    "paged_lion_8bit": _bitsandbytes(Rule.LION, 8, paged=True),
    "paged_lion_32bit": _bitsandbytes(Rule.LION, 32, paged=True),
}
"""
What the names of `--optim` run, as transformers' Trainer builds them and as a hand-written loop would.

`adamw_torch` passes neither `fused` nor `foreach`, and torch then takes foreach on CUDA, as for a plain
`torch.optim.AdamW(params)`. `adamw_torch_single` is `foreach=False`; no name of transformers gives it.

Source:
    transformers@5.23.0, trainer_optimizer.py, _get_adamw_torch, _get_bitsandbytes_optimizer (`paged` and `8bit` are read from the
    name) and _get_adafactor; torch@2.13.0, optim/optimizer.py, _default_to_fused_or_foreach; optim/_adafactor.py takes foreach
    only when asked.
"""


class State(NamedTuple):
    """
    One tensor that an optimizer keeps for a parameter.

    Attributes:
        name: As the library calls it.
        device_bytes: In torch's allocator on the card.
        managed_bytes: In CUDA managed memory: outside torch's counters, on the card only while it is needed and fits.
        host_bytes: In the host's memory.
    """

    name: str
    device_bytes: int = 0
    managed_bytes: int = 0
    host_bytes: int = 0


class Parameter(NamedTuple):
    """
    A trainable parameter as an optimizer meets it, with a gradient of its own type.

    Attributes:
        shape: Its shape.
        dtype: Its type.
        in_32_bits: Whether bitsandbytes is told to keep its states in fp32, whatever the optimizer's bits: the trainers do so for weights
            of `nn.Embedding` (transformers@5.23.0, trainer.py, Trainer.create_optimizer).
    """

    shape: tuple[int, ...]
    dtype: DType
    in_32_bits: bool = False

    @property
    def numel(self) -> int:
        """Its number of elements."""
        numel = 1
        for size in self.shape:
            numel = numel * size
        return numel

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.numel * self.dtype.num_bytes

    @property
    def num_rows(self) -> int:
        """Elements when the last axis is summed over."""
        return self.numel // self.shape[-1]

    @property
    def num_columns(self) -> int:
        """Elements when the last axis but one is summed over."""
        return self.numel // self.shape[-2]


Group = Sequence[tuple[Parameter, int]]
"""Parameters in the order in which an optimizer walks over them, each with how many equal ones follow each other."""


def states(variant: Variant, parameter: Parameter) -> tuple[State, ...]:
    """
    Everything that an optimizer keeps for one parameter, from its first step on.

    Sizes may be integer arrays: thresholds are arithmetic.

    Source:
        torch@2.13.0, optim/adam.py, Adam._init_group (the step is on the CPU unless fused); optim/sgd.py; optim/_adafactor.py;
        transformers@5.23.0, optimization.py, Adafactor.step; bitsandbytes@0.50.2, optim/optimizer.py, Optimizer2State.init_state,
        Optimizer1State.init_state and Optimizer8bit.get_state_buffer.
    """
    if variant.library == "bitsandbytes":
        return _bitsandbytes_states(variant, parameter)
    if variant.rule is Rule.ADAFACTOR:
        return _adafactor_states(variant, parameter)
    if variant.rule is Rule.ADAMW:
        step = DType.FP32.num_bytes
        on_device = variant.loop is Loop.KERNEL
        return (
            State("step", device_bytes=step) if on_device else State("step", host_bytes=step),
            State("exp_avg", parameter.nbytes),
            State("exp_avg_sq", parameter.nbytes),
        )
    return (State("momentum_buffer", parameter.nbytes),) if variant.rule is Rule.SGD_MOMENTUM else ()


def _bitsandbytes_states(variant: Variant, parameter: Parameter) -> tuple[State, ...]:
    """
    One or two states: uint8 and an fp32 absmax for 256 elements, or fp32 where there are fewer than 4,096 elements or 32 bits
    asked.

    Paged states go to managed memory from 100,000 elements on; the absmax never does.
    """
    n, fp32 = parameter.numel, DType.FP32.num_bytes
    names = ("state1", "state2") if variant.rule is Rule.ADAMW else ("state1",)
    in_8_bits = (n >= MIN_8BIT_ELEMENTS) * (variant.bits == 8 and not parameter.in_32_bits)
    nbytes = n * (fp32 - in_8_bits * (fp32 - 1))
    managed = nbytes * (n >= MIN_PAGED_ELEMENTS) * variant.paged
    kept = [State(name, device_bytes=nbytes - managed, managed_bytes=managed) for name in names]
    if variant.bits == 8:
        absmax = in_8_bits * ceil_div(n, STATE_BLOCK_ELEMENTS) * fp32
        kept += [State(name.replace("state", "absmax"), absmax) for name in names]
    return tuple(kept)


def _adafactor_states(variant: Variant, parameter: Parameter) -> tuple[State, ...]:
    """A row and a column of a matrix, a whole vector: fp32 and a scalar in transformers', the gradient's type in torch's."""
    is_torch = variant.library == "torch"
    size = parameter.dtype.num_bytes if is_torch else max(parameter.dtype.num_bytes, DType.FP32.num_bytes)
    scalar = State("step", host_bytes=DType.FP32.num_bytes) if is_torch else State("RMS", DType.FP32.num_bytes)
    if len(parameter.shape) < 2:
        return State("variance" if is_torch else "exp_avg_sq", parameter.numel * size), scalar
    names = ("row_var", "col_var") if is_torch else ("exp_avg_sq_row", "exp_avg_sq_col")
    return State(names[0], parameter.num_rows * size), State(names[1], parameter.num_columns * size), scalar


def shared_states(variant: Variant, parameters: Iterable[Parameter]) -> tuple[State, ...]:
    """
    What an optimizer keeps once for all its parameters: the 8-bit maps, as soon as one parameter has states in 8 bits.

    Source:
        bitsandbytes@0.50.2, optim/optimizer.py, init_state: `self.name2qmap["dynamic"].to(p.device)`, and "udynamic" for a
        second state.
    """
    if variant.bits != 8:
        return ()
    is_needed = largest(0 if parameter.in_32_bits else parameter.numel for parameter in parameters) >= MIN_8BIT_ELEMENTS
    names = ("qmap1", "qmap2") if variant.rule is Rule.ADAMW else ("qmap1",)
    return tuple(State(name, MAP_BYTES * is_needed) for name in names)


def step_temporaries(variant: Variant, groups: Sequence[Group]) -> int:
    """
    Allocated bytes that one step holds beside parameters, gradients and states, at its worst moment.

    Args:
        variant: The optimizer.
        groups: Its parameter groups, each in the order in which the optimizer has them. The Trainer makes two: with weight
            decay and without it (biases and norms); a hand-written loop makes one.

    Source:
        The functions named at each rule below; bitsandbytes and fused kernels make nothing (torch@2.13.0, optim/adam.py,
        _fused_adam; bitsandbytes@0.50.2, optim/optimizer.py, update_step: `p.grad.contiguous()` is the gradient itself).
    """
    if variant.loop is Loop.KERNEL or variant.rule in (Rule.SGD, Rule.SGD_MOMENTUM):
        return 0
    if variant.loop is Loop.FOREACH:
        return largest(_foreach_adamw(group) for group in groups)
    if variant.rule is Rule.ADAMW:
        return largest(_single_adamw(group) for group in groups)
    if variant.library == "torch":
        return largest(_torch_adafactor(group) for group in groups)
    return _transformers_adafactor([run for group in groups for run in group])


def _foreach_adamw(group: Group) -> int:
    """
    The square roots of all second moments of one type; those of the type before are dropped only once they stand.

    A group has one or two types, so all of it is alive in the end.

    Source:
        torch@2.13.0, optim/adam.py, _multi_tensor_adam: `exp_avg_sq_sqrt = torch._foreach_sqrt(device_exp_avg_sqs)`; all else
        in place.
    """
    return sum(count * allocated(parameter.nbytes) for parameter, count in group)


def _neighbours(group: Group) -> Iterator[Parameter]:
    """Every parameter and every pair that follow each other: of equal ones, two are enough."""
    for parameter, count in group:
        yield from (parameter,) * min(count, 2)


def _single_adamw(group: Group) -> int:
    """
    A square root and its quotient, while the denominator of the parameter before is still held.

    Source:
        torch@2.13.0, optim/adam.py, _single_tensor_adam: `denom = (exp_avg_sq.sqrt() / bias_correction2_sqrt).add_(eps)`.
    """
    worst = before = 0
    for parameter in _neighbours(group):
        size = allocated(parameter.nbytes)
        worst, before = larger(worst, 2 * size + before), size
    return worst


def _factor_blocks(parameter: Parameter, dtype: DType) -> int:
    """Allocated bytes of a row and a column of a matrix; none of a vector."""
    if len(parameter.shape) < 2:
        return 0
    return allocated(parameter.num_rows * dtype.num_bytes) + allocated(parameter.num_columns * dtype.num_bytes)


def _torch_adafactor(group: Group) -> int:
    """
    The estimate of a matrix's variance (a vector's, and its squared gradient), while the update of the parameter before is held.

    Source:
        torch@2.13.0, optim/_adafactor.py, _single_tensor_adafactor: `var_estimate = row_var @ col_var`, `update` in place of it.
    """
    worst = before = factors_before = squares_before = 0
    for parameter in _neighbours(group):
        size, factors = allocated(parameter.nbytes), _factor_blocks(parameter, parameter.dtype)
        if len(parameter.shape) > 1:
            worst = larger(worst, before + squares_before + factors + size)
            factors_before = factors
        else:
            worst = larger(worst, before + factors_before + 2 * size)
            squares_before = size
        before = size
    return worst


def _transformers_adafactor(group: Group) -> int:
    """
    Fp32 copies of a 16-bit gradient and parameter, and two fp32 tensors of their size, while the update of the parameter before
    is held; a matrix then has the inverse roots of its row and column instead.

    Its loop over groups and parameters is one function, so what a parameter leaves lives into the next one.

    Source:
        transformers@5.23.0, optimization.py, Adafactor.step: `update = (grad**2) + eps`, `update = self._approx_sq_grad(...)`,
        `p_data_fp32.add_(-update)`.
    """
    worst = update = weight = 0
    for parameter in _neighbours(group):
        size = allocated(parameter.numel * DType.FP32.num_bytes)
        copy = size * parameter.dtype.is_half
        worst = larger(worst, update + weight + copy)
        weight = copy
        worst = larger(worst, 2 * copy + 2 * size + larger(update, _factor_blocks(parameter, DType.FP32)))
        update = size
    return worst
