"""What a recipe spends without saying so: found on the prepared model, or by planning the run again without it."""

from __future__ import annotations

from collections.abc import Callable

from planner.preparation import Preparation, PreparedModule
from planner.recipe import Recipe
from planner.spec import ModuleKind
from planner.value import NamedTuple


class Trap(NamedTuple):
    """
    Memory that a run costs silently.

    Attributes:
        name: In a few words.
        nbytes: What it costs at the peak.
        sentence: Why, and what to do.
    """

    name: str
    nbytes: int
    sentence: str


def find_traps(preparation: Preparation, recipe: Recipe, peak_of: Callable[[Recipe], int]) -> tuple[Trap, ...]:
    """
    The traps of a run, largest first.

    Args:
        preparation: The model as the recipe leaves it.
        recipe: The resolved recipe.
        peak_of: Plans a changed recipe and gives its allocated peak.
    """
    found = [*_upcasts(preparation), *_left_dense(preparation, recipe), *_mixed_halves(recipe, peak_of), *_dora_dropout(recipe, peak_of)]
    return tuple(sorted(found, key=lambda trap: -trap.nbytes))


def _upcasts(preparation: Preparation) -> list[Trap]:
    sums: dict[str, int] = {}
    for row in preparation.modules:
        if row.upcast_from is not None:
            module = row.module
            numel = (0 if module.tied_to else module.weight_numel) + module.bias
            part = _part(row)
            sums[part] = sums.get(part, 0) + row.count * numel * (row.dtype.num_bytes - row.upcast_from.num_bytes)
    why = "prepare_model_for_kbit_training casts every 16-bit parameter to fp32"
    return [Trap(f"fp32 upcast of {part}", nbytes, why) for part, nbytes in sums.items()]


def _part(row: PreparedModule) -> str:
    module, last = row.module, row.module.name.rsplit(".", 1)[-1]
    if module.kind is ModuleKind.EMBEDDING:
        return "the embeddings"
    if module.kind is ModuleKind.EXPERTS:
        return "the experts"
    return "the head" if module.layers is None and ("head" in last or last == "embed_out") else "norms and the rest"


def _left_dense(preparation: Preparation, recipe: Recipe) -> list[Trap]:
    """Linears and experts that bitsandbytes leaves alone: what they hold beyond the half byte a weight that NF4 would take."""
    if not recipe.is_quantized:
        return []
    why = {
        ModuleKind.EXPERTS: "fused experts are bare parameters; bitsandbytes replaces nn.Linear only",
        ModuleKind.LINEAR_SUBCLASS: "these linears are a subclass of nn.Linear; bitsandbytes replaces the exact class only",
    }
    what = {ModuleKind.EXPERTS: "experts left unquantised", ModuleKind.LINEAR_SUBCLASS: "linears left unquantised"}
    sums: dict[ModuleKind, int] = {}
    for row in preparation.modules:
        kind = row.module.kind
        if kind in why and row.quantization is None and not row.module.tied_to:
            sums[kind] = sums.get(kind, 0) + row.count * row.module.weight_numel * row.dtype.num_bytes
    return [Trap(what[kind], nbytes, why[kind]) for kind, nbytes in sums.items()]


def _mixed_halves(recipe: Recipe, peak_of: Callable[[Recipe], int]) -> list[Trap]:
    """
    A base in one 16-bit type under autocast in the other: sums promote to fp32, and quantised weights are dequantised to the one
    type and copied to the other.
    """
    autocast = recipe.mixed_precision
    if recipe.method == "full" or autocast == "no" or recipe.dtype in (autocast, "fp32"):
        return []
    alike = recipe.model_copy(update={"dtype": autocast})
    nbytes = peak_of(recipe) - peak_of(alike)
    sentence = f"the base is {recipe.dtype}, autocast is {autocast}; pass --dtype {autocast}"
    return [Trap(f"{recipe.dtype} base under {autocast} autocast", nbytes, sentence)] if nbytes > 0 else []


def _dora_dropout(recipe: Recipe, peak_of: Callable[[Recipe], int]) -> list[Trap]:
    """DoRA with dropout multiplies by the dense base weight once more, and keeps it for backward (`operations.dora`)."""
    if recipe.method == "full" or not recipe.dora or not recipe.dropout:
        return []
    nbytes = peak_of(recipe) - peak_of(recipe.model_copy(update={"dropout": 0.0}))
    why = "with dropout, DoRA keeps a dense copy of every base weight for backward; pass --dropout 0"
    return [Trap("DoRA with dropout", nbytes, why)] if nbytes > 0 else []
