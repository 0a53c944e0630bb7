"""
How a model comes onto the card, tensor by tensor: the beginning of a history.

Straight to the card tensors come in the order of the checkpoint's sorted names, and are quantised as `reading` has it. A model that was
built on the CPU is moved in the order of its modules. kbit-prepare then casts one by one, and adapters follow.
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
        torch@2.13.0, nn/modules/module.py, Module._apply; bitsandbytes@0.50.2, functional.py, quantize_4bit, get_4bit_type, and
        backends/cuda/ops.py;
        peft@0.21.2, utils/other.py, prepare_model_for_kbit_training.
    """

    def __init__(self, history: History, recipe: Recipe, known: Behaviours) -> None:
        self.history, self.recipe, self.known = history, recipe, known
        self.dtype = DType(recipe.dtype)
        self.dense: dict[str, int] = {}
        self.has_map = False
        # a trainer moves what PEFT has wrapped; a loop moves the model itself, and wraps it then
        self.wraps_on_card = known.loads_on == "cuda" or recipe.entry_point == "loop"

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
            self._buffers(buffers)
        else:
            self._move(modules, buffers)
        h.stretches.append(Stretch(Phase.LOAD, 0, len(h.events)))
        self._cast(modules)
        if self.recipe.kbit_prepare and self.known.empty_cache_after_kbit_prepare:
            h.flushes.append(len(h.events))
        if self.wraps_on_card:
            self._adapt(modules)
        h.stretches.append(Stretch(Phase.PREPARE, h.stretches[-1].end, len(h.events)))

    def _move(self, modules: list[Placed], buffers: tuple[Buffer, ...]) -> None:
        """Module after module, with what PEFT put around it; a buffer comes where its own module is: behind the model's other modules."""
        last = {module.name.partition(".")[0]: i for i, module in enumerate(modules)}
        for i, module in enumerate(modules):
            for name, _, numel, dtype, _ in _tensors([module], self.dtype):
                self._stay(name, module, numel * dtype.num_bytes)
            if not self.wraps_on_card:
                self._wrap(module)
            self._buffers(tuple(buffer for buffer in buffers if last.get(buffer.name.partition(".")[0], len(modules) - 1) == i))

    def _buffers(self, buffers: tuple[Buffer, ...]) -> None:
        for buffer in buffers:
            for _ in range(buffer.count):
                self.history.add(_numel(buffer) * (buffer.dtype or self.dtype).num_bytes, buffer.name, Category.BUFFER)

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
        for tensor in reversed(int8_weight(row.module.out_features, row.module.in_features)):  # the scales are there first
            self._stay(tensor.name, module, tensor.nbytes, _category(tensor.name))
        return dropped

    def _four_bits(self, module: Placed, n: int) -> list[int]:
        """The weight's own tensors; returns what is dropped once they stand."""
        h, nested = self.history, self.recipe.double_quant
        dropped = []
        if module.row.module.kind is ModuleKind.CONV1D:
            dropped.append(self._passing("transposed weight", module, n * self.dtype.num_bytes))
        packed, absmax, code, *more = four_bit_weight(n, double_quant=nested)
        if nested:
            dropped.append(self._passing("scales", module, 4 * ceil_div(n, 64)))
        else:
            self._stay(absmax.name, module, absmax.nbytes, Category.QUANT_STATE)
        self._stay(packed.name, module, packed.nbytes)
        self._stay(code.name, module, code.nbytes, Category.QUANT_STATE)
        for storage in [self._passing(name, module, nbytes) for name, nbytes in (("absolute code", code.nbytes), ("its maximum", 4))]:
            h.drop(storage)
        if nested:
            offset, nested_absmax, nested_code = more
            self._stay(offset.name, module, offset.nbytes, Category.QUANT_STATE)
            dropped.append(self._passing("centred scales", module, 4 * ceil_div(n, 64)))
            if not self.has_map:
                h.add(DYNAMIC_MAP.nbytes, "shared dynamic map", Category.QUANT_STATE)
                self.has_map = True
            for tensor in (nested_absmax, absmax, nested_code):
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
        """
        Trained copies and adapters. Straight on the card adapters come in a type of the base's; once all stand, PEFT casts those of 16
        bits to fp32, and then the entry point casts them again.

        Source:
            peft@0.21.2, tuners/tuners_utils.py, _move_adapter_to_device_of_base_layer, cast_adapter_dtype.
        """
        adapters = [adapter for module in modules for adapter in self._wrap(module)]
        adapters = [self._cast_adapter(a, DType.FP32) if a.made.is_half and self._passes_fp32(a.wanted) else a for a in adapters]
        for adapter in adapters:
            if adapter.made is not adapter.wanted:
                self._cast_adapter(adapter, adapter.wanted)

    def _wrap(self, module: Placed) -> list[_Adapter]:
        """The trained copy or the adapter of one module; returns A and B."""
        row, adapter = module.row, module.row.adapter
        if row.saved_copy is not None:
            for numel in filter(None, (row.module.weight_numel, row.module.bias)):
                self._stay("trained copy", module, numel * row.saved_copy.num_bytes, Category.ADAPTER)
        if adapter is None:
            return []
        made, found = self._made_in(row, adapter.dtype), []
        for name, shape in (("lora_A", adapter.a_shape), ("lora_B", adapter.b_shape)):
            numel = shape[0] * shape[1]
            storage = self._stay(name, module, numel * made.num_bytes, Category.ADAPTER)
            found.append(_Adapter(storage, numel, made, adapter.dtype, module))
        if adapter.has_magnitude:
            size = adapter.magnitude * adapter.magnitude_dtype.num_bytes
            self._stay("lora_magnitude_vector", module, size, Category.ADAPTER)
        return found

    def _passes_fp32(self, wanted: DType) -> bool:
        """Whether adapters that rest in a type are in fp32 first: PEFT leaves them so, and the entry point casts those that it trains."""
        return wanted is DType.FP32 or self.known.trains_quantized_in is wanted

    def _made_in(self, row: PreparedModule, wanted: DType) -> DType:
        """The type that a module's adapter comes onto the card in; one that was asked for in 16 bits is made so."""
        if not self.wraps_on_card or not self._passes_fp32(wanted):
            return wanted
        if row.module.kind in (ModuleKind.EXPERTS, ModuleKind.PARAMETER) or row.quantization == "int8":
            return DType.FP32
        if row.quantization is None:
            return row.dtype
        return DType(self.recipe.compute_dtype) if self.known.adapters_in_compute_dtype else DType.FP32

    def _cast_adapter(self, old: _Adapter, dtype: DType) -> _Adapter:
        """The adapter in another type, and the old one's end."""
        storage = self._stay(self.history.names[old.storage], old.module, old.numel * dtype.num_bytes, Category.ADAPTER)
        self.history.drop(old.storage)
        return old._replace(storage=storage, made=dtype)


class _Adapter(NamedTuple):
    """A or B of an adapter: its storage, elements, the type that it is in, the one that it will rest in, and its module."""

    storage: int
    numel: int
    made: DType
    wanted: DType
    module: Placed


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
