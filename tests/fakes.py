"""An engine of round numbers, so that what stands above the engines can be tested without them."""

from __future__ import annotations

from planner.device import Device
from planner.engines.analytic import Analysis
from planner.engines.traps import Trap
from planner.history import History, Stretch
from planner.ledger import Allocation, Category, Ledger, Phase, Span
from planner.recipe import Recipe
from planner.spec import ModelSpec, ModuleKind
from planner.stack import Stack
from planner.units import MIB

ADAPTED = 10_000_000


def analyse(spec: ModelSpec, recipe: Recipe, stack: Stack, device: Device | None = None) -> Analysis:
    """
    A ledger of five rows: the weights, what is trained, its state, the layers' activations, the logits.
    """
    linear = sum(m.num_parameters for m in spec.modules if m.kind is ModuleKind.LINEAR)
    rest = spec.num_parameters - linear
    quantised = linear if recipe.is_quantized else 0
    trained = spec.num_parameters if recipe.method == "full" else ADAPTED * recipe.rank
    weights = quantised // 2 + (linear - quantised) * 2
    kept = rest * (4 if recipe.kbit_prepare else 2)
    state = trained * (2 if "8bit" in str(recipe.optim) else 8)
    paged = state if str(recipe.optim).startswith("paged") else 0
    layers = recipe.tokens * MIB // (64 if recipe.gradient_checkpointing else 8)
    logits = recipe.tokens * 128 * 1024 // (1 if recipe.loss == "full" else 8)
    C = Category
    rows = (
        Allocation(
            "quantised linears" if quantised else "linears",
            C.PARAMETER,
            weights,
            0,
            6,
            "half a byte a weight" if quantised else "",
        ),
        Allocation("absmax", C.QUANT_STATE, quantised // 64, 0, 6, "one a block of 64"),
        Allocation("embeddings, head and norms", C.PARAMETER, kept, 1, 6, "rows x width x bytes"),
        Allocation("adapters" if recipe.method != "full" else "master", C.ADAPTER, trained * 2, 1, 6, "r (in + out)"),
        Allocation("saved by layers", C.ACTIVATION, layers, 2, 5, "one input a layer"),
        Allocation("logits", C.LOGITS, logits, 3, 4, "B S V"),
        Allocation("gradients", C.GRADIENT, trained * 2, 4, 5),
        Allocation("optimizer state", C.OPTIMIZER_STATE, state - paged, 1, 6),
    )
    spans = (Span(Phase.PREPARE, 0, 2), Span(Phase.FORWARD, 2, 4), Span(Phase.BACKWARD, 4, 5), Span(Phase.OPTIMIZER_STEP, 5, 6))
    traps = (Trap("fp32 upcast of the head", rest * 2, "kbit-prepare turns it to fp32"),) if recipe.kbit_prepare else ()
    return Analysis(
        Ledger("analytic", rows, spans),
        steady_bytes=weights + quantised // 64 + kept + trained * 2 + state - paged,
        resting_bytes=weights + quantised // 64 + kept + trained * 2 + state - paged,
        num_quantized_parameters=quantised,
        num_trainable_parameters=trained,
        paged_bytes=paged,
        host_ram_bytes=0,
        download_bytes=spec.num_parameters * 2,
        run_key=(),
        reading="in_turn",
        _write=lambda pace: history(rows, spans),
        _find_traps=lambda: traps,
        warnings=(),
    )


def history(rows: tuple[Allocation, ...], spans: tuple[Span, ...]) -> History:
    """The rows as events: at each step what ends goes before what begins comes."""
    found, storages = History(), {}
    for span in spans:
        begin = len(found.events)
        for step in range(span.begin, span.end):
            for row in rows:
                if row.end == step:
                    found.drop(storages[row.name])
            for row in rows:
                if row.begin == step:
                    storages[row.name] = found.add(row.nbytes, row.name, row.category, row.scope)
        found.stretches.append(Stretch(span.phase, begin, len(found.events)))
    return found
