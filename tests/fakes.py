"""An engine of round numbers, so that what stands above the engines can be tested without them."""

from __future__ import annotations

from typing import Any

from planner.device import Device
from planner.ledger import Allocation, Category, Ledger, Phase, Span
from planner.recipe import Recipe
from planner.spec import ModelSpec, ModuleKind
from planner.stack import Stack
from planner.units import MIB

ADAPTED = 10_000_000


class FakeTrap:
    """What an engine says of memory that costs silently."""

    def __init__(self, name: str, nbytes: int, sentence: str) -> None:
        self.name, self.nbytes, self.sentence = name, nbytes, sentence


class FakeAnalysis:
    """What an engine returns."""

    def __init__(self, ledger: Ledger, **facts: Any) -> None:
        self.ledger = ledger
        self.__dict__.update(facts)


def analyse(spec: ModelSpec, recipe: Recipe, stack: Stack, device: Device | None = None) -> FakeAnalysis:
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
    logits = recipe.tokens * 128 * 1024 // (8 if recipe.loss == "chunked" else 1)
    C = Category
    rows = (
        Allocation("quantised linears" if quantised else "linears", C.PARAMETER, weights, 0, 6, "half a byte a weight" if quantised else ""),
        Allocation("absmax", C.QUANT_STATE, quantised // 64, 0, 6, "one a block of 64"),
        Allocation("embeddings, head and norms", C.PARAMETER, kept, 1, 6, "rows x width x bytes"),
        Allocation("adapters" if recipe.method != "full" else "master", C.ADAPTER, trained * 2, 1, 6, "r (in + out)"),
        Allocation("saved by layers", C.ACTIVATION, layers, 2, 4, "one input a layer"),
        Allocation("logits", C.LOGITS, logits, 3, 4, "B S V"),
        Allocation("gradients", C.GRADIENT, trained * 2, 4, 6),
        Allocation("optimizer state", C.OPTIMIZER_STATE, state - paged, 1, 6),
    )
    spans = (Span(Phase.PREPARE, 0, 2), Span(Phase.FORWARD, 2, 4), Span(Phase.BACKWARD, 4, 5), Span(Phase.OPTIMIZER_STEP, 5, 6))
    traps = (FakeTrap("fp32 upcast of the head", rest * 2, "kbit-prepare turns it to fp32"),) if recipe.kbit_prepare else ()
    return FakeAnalysis(
        Ledger("analytic", rows, spans),
        steady_bytes=weights + kept + trained * 2 + state - paged,
        num_quantized_parameters=quantised,
        num_trainable_parameters=trained,
        paged_bytes=paged,
        host_ram_bytes=0,
        download_bytes=spec.num_parameters * 2,
        traps=traps,
        warnings=(),
    )


def install() -> None:
    """Put it in the place of the closed form, for a process that is not a test."""
    import sys
    import types

    module = types.ModuleType("planner.engines.analytic")
    module.analyse = analyse  # type: ignore[attr-defined]
    module.Analysis = FakeAnalysis  # type: ignore[attr-defined]
    sys.modules["planner.engines.analytic"] = module
    import planner.engines

    planner.engines.analytic = module  # type: ignore[attr-defined]
