"""The modules of a step with their leaves: weights, biases and adapters as the recipe leaves them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.architecture.decoder import Layer, NormSpec
from planner.dtypes import DType
from planner.formulas.four_bit_kernel import reads_packed_weight
from planner.operations.decoder import Weights
from planner.operations.linear import Linear, Lora, Parameter
from planner.operations.norm import Norm
from planner.preparation import Preparation, PreparedModule
from planner.recipe import Recipe
from planner.schedule import Tape
from planner.spec import ModuleKind
from planner.tensors import Tensor
from planner.value import NamedTuple

if TYPE_CHECKING:
    from planner.operations.short_convolution import Convolution


class Kernels(NamedTuple):
    """
    What a card's compute capability changes in a step: cards that agree here share it.

    Attributes:
        is_ampere: Compute capability 8.0 or later: flash attention, grouped products.
        fused: The 4-bit linears that are multiplied without being dequantised.
    """

    is_ampere: bool
    fused: frozenset[str]


def kernels_of(preparation: Preparation, recipe: Recipe, capability: tuple[int, int]) -> Kernels:
    """
    The kernels that a card of this compute capability runs.

    Source:
        formulas.four_bit_kernel.
    """
    compute, tokens = DType(recipe.compute_dtype), recipe.tokens
    fused = (
        row.name
        for row in preparation.modules
        if row.quantization in ("nf4", "fp4")
        and reads_packed_weight(tokens, row.module.out_features, row.module.in_features, compute, capability)
    )
    return Kernels(capability >= (8, 0), frozenset(fused))


class Modules:
    """
    Makes the modules of a step, each with its leaves.

    Attributes:
        leaves: Every trained one that was made.
    """

    def __init__(self, t: Tape, prefix: str, preparation: Preparation, recipe: Recipe, kernels: Kernels) -> None:
        self.t, self.prefix, self.preparation, self.recipe, self.kernels = t, prefix, preparation, recipe, kernels
        self.tokens = recipe.tokens
        self.leaves: list[Tensor] = []
        self.owners: dict[str, Tensor] = {}  # weights outside the layers, by the module that owns them

    def weights(self, layer: Layer, index: int) -> Weights:
        """The modules of one layer, fresh: each instance has its own gradients."""
        prefix = self.prefix
        linears, norms, parameters, convolutions = {}, {}, {}, {}
        for name, rows in self.preparation.by_name.items():
            if not name.startswith(prefix):
                continue
            row = rows[0] if len(rows) == 1 else self.at(name, index)
            if row.module.layers is None or index not in row.module.layers:
                continue
            short = name[len(prefix) :]
            if row.module.kind in (ModuleKind.LINEAR, ModuleKind.LINEAR_SUBCLASS, ModuleKind.CONV1D):
                linears[short] = self.linear_of(row)
            elif row.module.kind in (ModuleKind.EXPERTS, ModuleKind.PARAMETER):
                parameters[short] = self.parameter_of(row)
            elif row.module.kind is ModuleKind.CONVOLUTION:
                convolutions[short] = self.convolution_of(row)
        for spec in (*layer.norms, layer.attention.q_norm, layer.attention.k_norm):
            if spec is not None and spec.name:
                norms[spec.name] = self.norm_of(self.at(prefix + spec.name, index), spec.kind, spec.width)
        return Weights(linears, norms, parameters, convolutions)

    def parameter_of(self, row: PreparedModule) -> Parameter:
        """A bare parameter with its leaves."""
        module = row.module
        outputs = module.out_features if len(module.shape) > 1 else 1
        return Parameter(module.in_features, outputs, self.owned(row), self.lora_of(row))

    def convolution_of(self, row: PreparedModule) -> Convolution:
        """A convolution with its leaves."""
        from planner.operations import short_convolution

        bias = self.leaf(row.module.bias, row.bias_dtype, row.trainable) if row.module.bias else None
        return short_convolution.Convolution(self.owned(row), bias)

    def linear_of(self, row: PreparedModule) -> Linear:
        """A linear with its leaves."""
        module, recipe = row.module, self.recipe
        bias = self.bias_of(row)
        compute = DType(recipe.compute_dtype)
        return Linear(
            inputs=module.in_features,
            outputs=module.out_features,
            weight=self.owned(row),
            bias=bias,
            quantization=row.quantization,
            quant_dtype=row.dtype,
            compute_dtype=compute,
            nested=recipe.double_quant,
            fused_tokens=self.tokens if row.name in self.kernels.fused else 0,
            lora=self.lora_of(row),
        )

    def lora_of(self, row: PreparedModule) -> Lora | None:
        """Its adapter, if it has one."""
        adapter = row.adapter
        if adapter is None:
            return None
        a = self.leaf(adapter.a_shape[0] * adapter.a_shape[1], adapter.dtype, True)
        b = self.leaf(adapter.b_shape[0] * adapter.b_shape[1], adapter.dtype, True)
        magnitude = self.leaf(adapter.magnitude, adapter.magnitude_dtype, True) if adapter.has_magnitude else None
        return Lora(adapter.rank, a, b, self.recipe.dropout, magnitude)

    def owned(self, row: PreparedModule) -> Tensor:
        """
        The weight, or the copy that `modules_to_save` trains in its place; a tied one is its owner's, so that both gradients meet in
        one tensor, but a copy is tied to nothing.
        """
        module = row.module
        if row.saved_copy is not None:
            return self.leaf(module.weight_numel, row.saved_copy, True)
        if module.layers is not None:
            return self.leaf(module.weight_numel, row.dtype, row.trainable)
        name = module.tied_to or module.name
        if name not in self.owners:
            self.owners[name] = self.leaf(module.weight_numel, row.dtype, row.trainable)
        else:
            self.t.share(self.owners[name])
        return self.owners[name]

    def bias_of(self, row: PreparedModule) -> Tensor | None:
        """Its bias, if it has one."""
        if not row.module.bias:
            return None
        return self.leaf(row.module.bias, row.saved_copy or row.bias_dtype, row.trainable or row.saved_copy is not None)

    def leaf(self, numel: int, dtype: DType, trainable: bool) -> Tensor:
        """A parameter: it rests outside the tape. Trained ones keep the gradient of earlier micro-batches."""
        leaf = Tensor(None, numel, dtype, trainable)
        if trainable:
            self.leaves.append(leaf)
            if self.recipe.grad_accum > 1:
                leaf.grad = Tensor(None, numel, dtype)  # rests among what `accumulated` counts
        return leaf

    def outer_norm(self, spec: NormSpec) -> Weights:
        """The one norm outside the layers, as `normalise` looks for it."""
        if not spec.name:
            return Weights({}, {})
        return Weights({}, {spec.name: self.norm_of(self.at(spec.name, None), spec.kind, spec.width)})

    def norm_of(self, row: PreparedModule, kind: str, width: int) -> Norm:
        """A normalisation with its leaves; without a width, it is that of its weight."""
        return Norm(kind, width or row.module.weight_numel, self.owned(row), self.bias_of(row))

    def at(self, name: str, layer: int | None) -> PreparedModule:
        """The row of a name, and of the layer where layers differ."""
        row = self.preparation.at(name, layer)
        assert row is not None, f"{name} is not in the module table"
        return row
