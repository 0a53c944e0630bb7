"""What rests on the card: weights, adapters, buffers, optimizer states. Exact to the byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from planner.dtypes import DType
from planner.formulas.blocks import allocated
from planner.formulas.optimizer import VARIANTS, Parameter, shared_states, states
from planner.formulas.weights import DYNAMIC_MAP, four_bit_loading, four_bit_weight, int8_loading, int8_weight
from planner.ledger import Allocation, Category
from planner.preparation import Preparation, PreparedModule
from planner.recipe import Recipe
from planner.spec import ModelSpec, ModuleKind


class Resting:
    """
    What stays, as rows that begin while the model is prepared and end with the ledger (end 0 stands for that).

    Weights begin at step 0, the largest transient of their preparation at 1, adapters at 2.

    Attributes:
        rows: The rows.
        trainables: Every trained tensor, with how often it occurs.
        steady_bytes: Allocated between steps, from the second on.
        managed_bytes: Optimizer state in CUDA managed memory.
        host_bytes: Optimizer state on the host.
        prepare_end: The first step after the preparation.
    """

    def __init__(self, trainables: Iterable[tuple[Parameter, int]] = ()) -> None:
        self.rows: list[Allocation] = []
        self.trainables = list(trainables)
        self.steady_bytes = self.managed_bytes = self.host_bytes = 0
        self.prepare_end = 3

    def add(self, name: str, category: Category, nbytes: int, count: int = 1, formula: str = "", begin: int = 0) -> None:
        """`count` tensors of `nbytes` each, rounded one by one."""
        if nbytes:
            total = count * allocated(nbytes)
            self.rows.append(Allocation(name, category, total, begin, 0, formula=formula))
            self.steady_bytes += total


def rest(spec: ModelSpec, preparation: Preparation, recipe: Recipe, reached: Callable[[str], bool]) -> Resting:
    """
    Everything that lives from step to step, and the largest transient of the preparation.

    Args:
        spec: The checkpoint, for its buffers.
        preparation: Its modules as the recipe leaves them.
        recipe: The resolved recipe.
        reached: Whether a module, by its name, works in a step. What does not gets no gradient, and an optimizer skips it.
    """
    out = Resting()
    transient = 0
    for row in preparation.modules:
        transient = max(transient, _add_weight(out, row, recipe))
        _add_adapter(out, row)
        if reached(row.module.name):
            out.trainables += [(parameter, row.count) for parameter in trained_tensors(row, recipe)]
    if recipe.is_quantized and recipe.double_quant and recipe.quantization != "int8":
        out.add("bitsandbytes: shared dynamic map", Category.QUANT_STATE, DYNAMIC_MAP.nbytes, formula="256 fp32")
    for buffer in spec.buffers:
        dtype = buffer.dtype or DType(recipe.dtype)
        out.add(buffer.name, Category.BUFFER, buffer.numel * dtype.num_bytes, buffer.count, f"{buffer.shape} {dtype}")
    if transient:
        out.rows.append(Allocation("largest tensor while it is prepared", Category.TEMPORARY, transient, 1, 2))
    _add_states(out, recipe)
    return out


def trained_tensors(row: PreparedModule, recipe: Recipe) -> tuple[Parameter, ...]:
    """What is trained of one module, in the order of `named_parameters()`: its own, the copies of `modules_to_save`, its adapter."""
    module, adapter = row.module, row.adapter
    found: list[Parameter] = []
    in_32_bits = module.kind is ModuleKind.EMBEDDING and recipe.entry_point != "loop"
    if row.trainable:
        found += [] if module.tied_to else [Parameter(module.shape, row.dtype, in_32_bits)]
        found.append(Parameter((module.bias,), row.bias_dtype))
    if row.saved_copy is not None:
        found += [Parameter(module.shape, row.saved_copy, in_32_bits), Parameter((module.bias,), row.saved_copy)]
    if adapter is not None:
        found += [Parameter(adapter.a_shape, adapter.dtype), Parameter(adapter.b_shape, adapter.dtype)]
        found.append(Parameter((adapter.magnitude,), adapter.magnitude_dtype))
    return tuple(parameter for parameter in found if parameter.numel)


_INT8 = {"weight": "n bytes", "weight.SCB": "4 bytes a row"}
_STATISTICS = {
    False: {"weight": "n/2 bytes", "quant_state.absmax": "4 bytes for 64 weights"},
    True: {
        "weight": "n/2 bytes",
        "quant_state.absmax": "1 byte for 64 weights",
        "quant_state.state2.absmax": "4 bytes for 16,384 weights",
        "quant_state.offset": "one number",
    },
}
"""How the tensors of a 4-bit weight come about, for people, without and with double quantisation."""


def _add_weight(out: Resting, row: PreparedModule, recipe: Recipe) -> int:
    """The module's own tensors; returns the bytes that live beside them at the worst moment of loading or casting one."""
    module, count = row.module, row.count
    transient = _add_stored(out, row, recipe)
    if module.bias:
        out.add(f"{module.name}: bias", Category.PARAMETER, module.bias * row.bias_dtype.num_bytes, count, f"({module.bias},)")
    if row.saved_copy is not None:
        for shape in (module.shape, (module.bias,)):
            _add_trained(out, f"{module.name}: trained copy", shape, row.saved_copy, count)
    return transient


def _add_stored(out: Resting, row: PreparedModule, recipe: Recipe) -> int:
    """The weight as it is stored: quantised with its statistics, or dense."""
    module, n = row.module, row.module.weight_numel
    if row.quantization is None:
        if module.tied_to:
            return 0
        out.add(f"{module.name}: weight", Category.PARAMETER, n * row.dtype.num_bytes, row.count, f"{module.shape} {row.dtype}")
        return allocated(n * row.upcast_from.num_bytes) if row.upcast_from is not None else 0
    if row.quantization == "int8":
        tensors, words = int8_weight(module.out_features, module.in_features), _INT8
        loading = int8_loading(n, DType(recipe.dtype))
    else:
        tensors, words = four_bit_weight(n, double_quant=recipe.double_quant), _STATISTICS[recipe.double_quant]
        loading = four_bit_loading(
            n, DType(recipe.dtype), double_quant=recipe.double_quant, transposed=module.kind is ModuleKind.CONV1D
        )
    for tensor in tensors:
        category = Category.PARAMETER if tensor.name == "weight" else Category.QUANT_STATE
        how = words.get(tensor.name, "one table")
        out.add(f"{module.name}: {tensor.name}", category, tensor.nbytes, row.count, f"{how}, n = {n:,}")
    return sum(allocated(t.nbytes) for t in loading)


def _add_adapter(out: Resting, row: PreparedModule) -> None:
    adapter = row.adapter
    if adapter is None:
        return
    name = row.module.name
    _add_trained(out, f"{name}: lora_A", adapter.a_shape, adapter.dtype, row.count)
    _add_trained(out, f"{name}: lora_B", adapter.b_shape, adapter.dtype, row.count)
    if adapter.has_magnitude:
        _add_trained(out, f"{name}: lora_magnitude_vector", (adapter.magnitude,), adapter.magnitude_dtype, row.count)


def _add_trained(out: Resting, name: str, shape: tuple[int, ...], dtype: DType, count: int) -> None:
    parameter = Parameter(shape, dtype)
    if parameter.numel:
        out.add(name, Category.ADAPTER, parameter.nbytes, count, f"{shape} {dtype}", begin=2)


def _add_states(out: Resting, recipe: Recipe) -> None:
    """Optimizer states of every trained tensor: what is on the card, in managed memory, and on the host."""
    variant = VARIANTS[str(recipe.optim)]
    sums: dict[str, int] = {}
    for parameter, count in out.trainables:
        for state in states(variant, parameter):
            sums[state.name] = sums.get(state.name, 0) + count * allocated(state.device_bytes)
            out.managed_bytes += count * state.managed_bytes
            out.host_bytes += count * state.host_bytes
    for state in shared_states(variant, (parameter for parameter, _ in out.trainables)):
        sums[state.name] = sums.get(state.name, 0) + allocated(state.device_bytes)
    for name, nbytes in sums.items():
        out.add(f"optimizer: {name}", Category.OPTIMIZER_STATE, nbytes, begin=3, formula=str(recipe.optim))


