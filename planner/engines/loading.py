"""
The order in which a model comes onto the card, replayed through the allocator: what it leaves of blocks that are larger than asked for.

A block of the large pool keeps up to 1 MiB that the allocator does not split off, and it counts as allocated for as long as the
tensor lives. How much that is depends on which holes a tensor meets, so the loader's own order is followed tensor by tensor.
"""

from __future__ import annotations

from planner.allocator import Block, CachingAllocator
from planner.dtypes import DType
from planner.formulas.weights import four_bit_weight
from planner.preparation import Preparation, PreparedModule
from planner.recipe import Recipe
from planner.stack import Behaviours
from planner.units import ceil_div

_LAYERS_REPLAYED = 12
"""Layers that are replayed one by one; of those beyond, each adds what one of the second half of these added."""


class Loading:
    """
    A base model on the card, before its adapters.

    Args:
        preparation: Its modules.
        recipe: The resolved recipe.
        known: What the stack does.

    Source:
        transformers@5.23.0, modeling_utils.py caching_allocator_warmup, core_model_loading.py (quantised tensors one by one);
        bitsandbytes@0.50.2, functional.py quantize_4bit; peft@0.21.2, utils/other.py prepare_model_for_kbit_training; the block rules:
        planner.allocator.
    """

    def __init__(self, preparation: Preparation, recipe: Recipe, known: Behaviours) -> None:
        self.preparation, self.recipe, self.known = preparation, recipe, known
        self.dtype = DType(recipe.dtype)
        self.allocator = CachingAllocator()
        self.dense: list[tuple[Block, int, DType]] = []
        self.asked = 0  # bytes of the tensors that stay, each rounded
        self.growth = self._replay()

    def unsplit_bytes(self, preparation: Preparation) -> int:
        """
        Bytes of weights' and adapters' blocks beyond their tensors' own, each rounded to 512, once the model is ready.

        Args:
            preparation: The same base with the adapters in question; nothing of them stays behind.
        """
        asked = self.asked
        held = [
            self._stay(shape[0] * shape[1] * row.adapter.dtype.num_bytes)
            for row in preparation.modules
            if row.adapter is not None
            for shape in (row.adapter.a_shape, row.adapter.b_shape) * min(row.count, _LAYERS_REPLAYED)
        ]
        excess = self._excess() + self.growth
        for block in reversed(held):
            self.allocator.free(block)
        self.asked = asked
        return excess

    def _replay(self) -> int:
        """Replays the loading; returns what the layers that are not replayed would add."""
        before, layers, after = self._in_order()
        if self.known.warms_up_allocator and self.known.loads_on == "cuda":
            self._warm_up()
        self._load(before)
        marks = []
        for i, rows in enumerate(layers[:_LAYERS_REPLAYED]):
            if i == _LAYERS_REPLAYED // 2:
                marks.append(self._excess())
            self._load(rows)
        marks.append(self._excess())
        self._load(after)
        self._cast()
        more = len(layers) - _LAYERS_REPLAYED
        return 0 if more <= 0 else more * (marks[1] - marks[0]) // (_LAYERS_REPLAYED // 2)

    def _in_order(self) -> tuple[list[PreparedModule], list[list[PreparedModule]], list[PreparedModule]]:
        """
        What comes before the layers, each layer, and what comes after.

        Straight to the card tensors come in the order of the checkpoint's sorted names; from the CPU in the order of the modules.

        Source:
            transformers@5.23.0, core_model_loading.py, dot_natural_key; torch@2.13.0, nn/modules/module.py, Module._apply.
        """
        rows = self.preparation.modules
        if self.known.loads_on == "cuda":
            rows = tuple(sorted(rows, key=lambda row: row.module.name))
        layers: dict[tuple[str, int], list[PreparedModule]] = {}
        outside: tuple[list[PreparedModule], list[PreparedModule]] = ([], [])
        for row in rows:
            for layer in row.module.layers or ():
                layers.setdefault((row.module.name.split("*", 1)[0], layer), []).append(row)
            if row.module.layers is None:
                outside[bool(layers)].append(row)
        return outside[0], [layers[key] for key in sorted(layers)], outside[1]

    def _excess(self) -> int:
        return self.allocator.allocated_bytes - self.asked

    def _warm_up(self) -> None:
        """One request for the whole model, let go of at once: 4-bit weights count half a byte, 8-bit ones one."""
        total = 0
        for row in self.preparation.modules:
            n = 0 if row.module.tied_to else row.module.weight_numel
            bits = {"int8": 8, None: 8 * self.dtype.num_bytes}.get(row.quantization, 4)
            total += row.count * (n * bits // 8 + row.module.bias * self.dtype.num_bytes)
        self.allocator.free(self.allocator.allocate(total))

    def _stay(self, nbytes: int) -> Block:
        self.asked += ceil_div(nbytes, 512) * 512
        return self.allocator.allocate(nbytes)

    def _load(self, rows: list[PreparedModule]) -> None:
        size = self.dtype.num_bytes
        for row in rows:
            n = row.module.weight_numel
            if row.quantization == "int8":
                source = self.allocator.allocate(n * size)
                half = self.allocator.allocate(n * 2)
                self._stay(n)
                self._stay(4 * row.module.out_features)
                self.allocator.free(half)
                self.allocator.free(source)
            elif row.quantization is not None:
                self._quantize(n)
            elif not row.module.tied_to:
                self.dense.append((self._stay(n * size), n, row.dtype))
            if row.module.bias:
                self.dense.append((self._stay(row.module.bias * size), row.module.bias, row.bias_dtype))

    def _quantize(self, n: int) -> None:
        """A 4-bit weight and its statistics, made beside the tensor that was read."""
        source = self.allocator.allocate(n * self.dtype.num_bytes)
        packed, absmax, code, *more = four_bit_weight(n, double_quant=self.recipe.double_quant)
        if not self.recipe.double_quant:
            for tensor in (absmax, packed, code):
                self._stay(tensor.nbytes)
        else:
            offset, nested_absmax, nested_code = more
            scales = self.allocator.allocate(4 * ceil_div(n, 64))
            for tensor in (packed, code, offset):
                self._stay(tensor.nbytes)
            centred = self.allocator.allocate(4 * ceil_div(n, 64))
            for tensor in (nested_absmax, absmax, nested_code):
                self._stay(tensor.nbytes)
            self.allocator.free(centred)
            self.allocator.free(scales)
        self.allocator.free(source)

    def _cast(self) -> None:
        """What is not quantised goes to fp32 one by one, each old copy dying as the new one stands."""
        for block, n, dtype in self.dense:
            if dtype is not self.dtype:
                self._stay(n * dtype.num_bytes)
                self.asked -= ceil_div(n * self.dtype.num_bytes, 512) * 512
                self.allocator.free(block)
        if self.recipe.kbit_prepare and self.known.empty_cache_after_kbit_prepare:
            self.allocator.empty_cache()
