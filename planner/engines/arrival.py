"""
How a model comes onto the card, tensor by tensor: the beginning of a history.

Straight to the card tensors come in the order of the checkpoint's sorted names, and are quantised as `reading` has it. A model that was
built on the CPU is moved in the order of its modules. kbit-prepare then casts one by one, and adapters and buffers follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

from planner.dtypes import DType
from planner.engines.reading import IN_TURN, Deed, Pace, reading_order
from planner.formulas.weights import DYNAMIC_MAP, four_bit_weight, int8_weight
from planner.history import History, Stretch
from planner.ledger import Category, Phase
from planner.preparation import Preparation, PreparedModule
from planner.recipe import Recipe
from planner.spec import Buffer, ModuleKind
from planner.stack import Behaviours
from planner.units import ceil_div
from planner.value import NamedTuple

Place = Callable[[int], int | None]
"""From a layer of the decoder to the instance of the repeated layers that it is in; None for none of them."""


class Placed(NamedTuple):
    """
    One module of the model.

    Attributes:
        name: Its path.
        row: What is known of it.
        owner: The instance of the repeated layers that it belongs to.
    """

    name: str
    row: PreparedModule
    owner: int | None


def placed(preparation: Preparation, prefix: str, run: frozenset[int], instance_of: Place) -> list[Placed]:
    """
    Every module in registration order, but for the decoder's layers that are not run.

    Args:
        preparation: The modules.
        prefix: Path of a decoder layer, with `*`.
        run: The decoder's layers that are run.
        instance_of: From one of them to its instance.
    """
    found: list[Placed] = []
    for stack, group in groupby(preparation.modules, lambda row: row.name.split("*", 1)[0] if row.module.layers else None):
        rows = list(group)
        if stack is None:
            found += [Placed(row.name, row, None) for row in rows]
            continue
        is_decoder = prefix.startswith(f"{stack}*")
        for layer in sorted({layer for row in rows for layer in row.module.layers or ()}):
            if is_decoder and layer not in run:
                continue
            owner = instance_of(layer) if is_decoder else None
            found += [Placed(row.name.replace("*", str(layer), 1), row, owner) for row in rows if layer in (row.module.layers or ())]
    return found


class Arrival:
    """
    Writes the loading and the preparation of a model.

    Args:
        history: Where.
        recipe: The resolved recipe.
        known: What the stack does.

    Source:
        transformers@5.23.0, modeling_utils.py caching_allocator_warmup, core_model_loading.py (`dot_natural_key`);
        torch@2.13.0, nn/modules/module.py, Module._apply; bitsandbytes@0.50.2, functional.py, quantize_4bit;
        peft@0.21.2, utils/other.py, prepare_model_for_kbit_training.
    """

    def __init__(self, history: History, recipe: Recipe, known: Behaviours) -> None:
        self.history, self.recipe, self.known = history, recipe, known
        self.dtype = DType(recipe.dtype)
        self.dense: dict[str, int] = {}
        self.has_map = False

    def write(self, modules: list[Placed], preparation: Preparation, buffers: tuple[Buffer, ...], pace: Pace = IN_TURN) -> None:
        """
        Everything up to the first step.

        Args:
            modules: The modules that are written out.
            preparation: All modules: the warm-up asks for their sum.
            buffers: The model's buffers.
            pace: Of the thread that quantises, where others read ahead of it.
        """
        h = self.history
        if self.known.loads_on == "cuda":
            if self.known.warms_up_allocator:
                h.warm_up = h.add(self._checkpoint_bytes(preparation), "warm-up of the allocator", Category.TEMPORARY)
                h.drop(h.warm_up)
            self._read(modules, pace)
        else:
            for name, module, numel, dtype, _ in _tensors(modules, self.dtype):
                self._stay(name, module, numel * dtype.num_bytes)
        h.stretches.append(Stretch(Phase.LOAD, 0, len(h.events)))
        self._cast(modules)
        if self.recipe.kbit_prepare and self.known.empty_cache_after_kbit_prepare:
            h.flushes.append(len(h.events))
        self._adapt(modules)
        for buffer in buffers:
            for _ in range(buffer.count):
                h.add(_numel(buffer) * (buffer.dtype or self.dtype).num_bytes, buffer.name, Category.BUFFER)
        h.stretches.append(Stretch(Phase.PREPARE, h.stretches[-1].end, len(h.events)))

    def _checkpoint_bytes(self, preparation: Preparation) -> int:
        """What the warm-up asks for: 4-bit weights count half a byte, 8-bit ones one."""
        total = 0
        for row in preparation.modules:
            n = 0 if row.module.tied_to else row.module.weight_numel
            bits = {"int8": 8, None: 8 * self.dtype.num_bytes}.get(row.quantization, 4)
            total += row.count * (n * bits // 8 + row.module.bias * self.dtype.num_bytes)
        return total

    def _stay(self, name: str, module: Placed, nbytes: int, category: Category = Category.PARAMETER) -> int:
        return self.history.add(nbytes, name.rpartition(".")[2], category, module.name, module.owner)

    def _passing(self, name: str, module: Placed, nbytes: int) -> int:
        return self.history.add(nbytes, name, Category.TEMPORARY, module.name, module.owner)

    def _read(self, modules: list[Placed], pace: Pace) -> None:
        """Tensor after tensor, or as a racing loader's threads do it."""
        tensors = sorted(_tensors(modules, self.dtype), key=lambda tensor: _natural(tensor.name))
        sizes = [tensor.numel * tensor.dtype.num_bytes for tensor in tensors]
        made: dict[int, list[int]] = {}
        for deed, i in reading_order(sizes, [tensor.quantised for tensor in tensors], pace):
            name, module, numel, _, quantised = tensors[i]
            if deed is Deed.READ:
                made[i] = [(self._passing("weight as read", module, sizes[i]) if quantised else self._stay(name, module, sizes[i]))]
                if not quantised:
                    self.dense[name] = made[i][0]
            elif deed is Deed.QUANTISE:
                made[i] += self._quantise(module, numel)
            else:
                for storage in reversed(made.pop(i)):
                    self.history.drop(storage)

    def _quantise(self, module: Placed, n: int) -> list[int]:
        """The weight's own tensors; returns what is dropped with what was read."""
        row = module.row
        if row.quantization != "int8":
            return self._four_bits(module, n)
        dropped = [] if self.dtype is DType.FP16 else [self._passing("weight in fp16", module, n * DType.FP16.num_bytes)]
        for tensor in int8_weight(row.module.out_features, row.module.in_features):
            self._stay(tensor.name, module, tensor.nbytes, _category(tensor.name))
        return dropped

    def _four_bits(self, module: Placed, n: int) -> list[int]:
        """The weight's own tensors; returns what is dropped once they stand."""
        h, nested = self.history, self.recipe.double_quant
        dropped = []
        if module.row.module.kind is ModuleKind.CONV1D:
            dropped.append(self._passing("transposed weight", module, n * self.dtype.num_bytes))
        packed, *statistics = four_bit_weight(n, double_quant=nested)
        if nested:
            dropped.append(self._passing("scales", module, 4 * ceil_div(n, 64)))
        self._stay(packed.name, module, packed.nbytes)
        if nested:
            dropped.append(self._passing("centred scales", module, 4 * ceil_div(n, 64)))
            if not self.has_map:
                h.add(DYNAMIC_MAP.nbytes, "shared dynamic map", Category.QUANT_STATE)
                self.has_map = True
        for tensor in statistics:
            self._stay(tensor.name, module, tensor.nbytes, Category.QUANT_STATE)
        return dropped

    def _cast(self, modules: list[Placed]) -> None:
        """kbit-prepare: one by one, each old tensor dying as the new one stands."""
        for name, module, numel, dtype, quantised in _tensors(modules, self.dtype):
            wanted = module.row.bias_dtype if name.endswith(".bias") else module.row.dtype
            if not quantised and wanted is not dtype and name in self.dense:
                self._stay(name, module, numel * wanted.num_bytes)
                self.history.drop(self.dense[name])

    def _adapt(self, modules: list[Placed]) -> None:
        """Trained copies and adapters; adapters over a quantised base are made in fp32, and cast once all stand."""
        h = self.history
        casts: list[tuple[int, int, Placed]] = []
        for module in modules:
            row, adapter = module.row, module.row.adapter
            if row.saved_copy is not None:
                for numel in filter(None, (row.module.weight_numel, row.module.bias)):
                    self._stay("trained copy", module, numel * row.saved_copy.num_bytes, Category.ADAPTER)
            if adapter is None:
                continue
            is_cast = self.known.trains_quantized_in is adapter.dtype
            for name, shape in (("lora_A", adapter.a_shape), ("lora_B", adapter.b_shape)):
                numel = shape[0] * shape[1]
                made = DType.FP32 if is_cast else adapter.dtype
                storage = self._stay(name, module, numel * made.num_bytes, Category.ADAPTER)
                if is_cast:
                    casts.append((storage, numel * adapter.dtype.num_bytes, module))
            if adapter.has_magnitude:
                size = adapter.magnitude * adapter.magnitude_dtype.num_bytes
                self._stay("lora_magnitude_vector", module, size, Category.ADAPTER)
        for storage, nbytes, module in casts:
            self._stay(h.names[storage], module, nbytes, Category.ADAPTER)
            h.drop(storage)


class _Tensor(NamedTuple):
    """A tensor of a checkpoint: its name, module and elements, the dtype that it has once it is read, and whether it is quantised."""

    name: str
    module: Placed
    numel: int
    dtype: DType
    quantised: bool


def _tensors(modules: list[Placed], load: DType) -> Iterator[_Tensor]:
    for module in modules:
        row, quantised = module.row, module.row.quantization is not None
        stored = row.upcast_from or (load if quantised else row.dtype)
        if not row.module.tied_to:
            yield _Tensor(f"{module.name}.weight", module, row.module.weight_numel, stored, quantised)
        if row.module.bias:
            yield _Tensor(f"{module.name}.bias", module, row.module.bias, stored, False)


def _natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Source: transformers@5.23.0, core_model_loading.py, dot_natural_key: numbers by their value, before texts."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split("."))


def _category(name: str) -> Category:
    return Category.PARAMETER if name == "weight" else Category.QUANT_STATE


def _numel(buffer: Buffer) -> int:
    numel = 1
    for size in buffer.shape:
        numel *= size
    return numel
