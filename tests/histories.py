"""Histories made by hand, so that what draws and spells them can be tested without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from planner.history import History, Stretch
from planner.ledger import Category, Phase
from planner.units import KIB, MIB

C = Category
LINEARS = {"q_proj": 8, "k_proj": 8, "v_proj": 8, "o_proj": 8, "gate_proj": 22, "up_proj": 22, "down_proj": 22}


@contextmanager
def stretch(history: History, phase: Phase, instance: int | None = None) -> Iterator[None]:
    """What is written inside belongs to a phase."""
    begin = len(history.events)
    yield
    history.stretches.append(Stretch(phase, begin, len(history.events), instance))


def small() -> History:
    """
    Eleven storages: loading with a flush, two steps of which the second has a larger peak, and an evaluation.

    Events by phase: load 0 to 2, forward 3 to 4, backward 5 to 8, optimizer 9 to 10, then the same again up to 18, evaluation 19, 20.
    """
    history = History(flushes=[2])
    with stretch(history, Phase.LOAD):
        warmup = history.add(64 * MIB, "warmup", C.TEMPORARY)
        history.drop(warmup)
        history.add(30 * MIB + 1, "weight", C.PARAMETER, "model.layers.0.mlp")
    for logits in (4 * MIB, 6 * MIB):
        with stretch(history, Phase.FORWARD):
            saved = history.add(600 * KIB, "mm", C.ACTIVATION, "model.layers.0.mlp")
            head = history.add(logits, "logits", C.LOGITS, "lm_head")
        with stretch(history, Phase.BACKWARD):
            gradient = history.add(2 * MIB, "gradient", C.GRADIENT, "model.layers.0.mlp")
            history.drop(head)
            history.drop(saved)
            scratch = history.add(0, "empty", C.TEMPORARY)
        with stretch(history, Phase.OPTIMIZER_STEP):
            history.drop(scratch)
            history.drop(gradient)
    with stretch(history, Phase.EVALUATION):
        history.drop(history.add(40 * MIB, "logits", C.LOGITS, "lm_head"))
    return history


def training(layers: int = 32, steps: int = 2, operations: int = 40) -> History:
    """
    A run that looks like QLoRA with checkpointing: loading, steps with recomputation and growing gradients, an evaluation.

    Args:
        layers: How many.
        steps: Training steps; the optimizer's state appears in the first.
        operations: Activations in one layer.
    """
    history = History()
    with stretch(history, Phase.LOAD):
        history.drop(history.add(layers * 110 * MIB, "warmup", C.TEMPORARY))
        history.add(250 * MIB, "weight", C.PARAMETER, "model.embed_tokens")
        for i in range(layers):
            for name, size in LINEARS.items():
                scope = f"model.layers.{i}.{name}"
                full = history.add(size * 4 * MIB, "weight", C.TEMPORARY, scope)
                history.add(size * MIB, "weight", C.PARAMETER, scope)
                history.add(size * MIB // 60, "absmax", C.QUANT_STATE, scope)
                history.drop(full)
        history.add(250 * MIB, "weight", C.PARAMETER, "lm_head")
    with stretch(history, Phase.PREPARE):
        for i in range(layers):
            history.add(640 * KIB, "lora_A", C.ADAPTER, f"model.layers.{i}.q_proj")
            history.add(640 * KIB, "lora_B", C.ADAPTER, f"model.layers.{i}.q_proj")
    for step in range(steps):
        _step(history, layers, operations, is_first=step == 0)
    with stretch(history, Phase.EVALUATION):
        history.drop(history.add(260 * MIB, "logits", C.LOGITS, "lm_head"))
    return history


def _step(history: History, layers: int, operations: int, *, is_first: bool) -> None:
    kept, gradients = [], []
    with stretch(history, Phase.FORWARD):
        for i in range(layers):
            _layer(history, i, operations)
            kept.append(history.add(16 * MIB, "hidden states", C.ACTIVATION, f"model.layers.{i}"))
        logits = [history.add(250 * MIB, name, C.LOGITS, "lm_head") for name in ("linear", "float", "log_softmax")]
    with stretch(history, Phase.BACKWARD):
        for storage in reversed(logits):
            history.drop(storage)
        for i in reversed(range(layers)):
            saved = _layer(history, i, operations, keeps=True)
            for storage in reversed(saved):
                scratch = history.add(12 * MIB + 4096, "mm", C.TEMPORARY, f"model.layers.{i}.mlp")
                history.drop(storage)
                history.drop(scratch)
            gradients += [history.add(640 * KIB, name, C.GRADIENT, f"model.layers.{i}.q_proj") for name in ("lora_A", "lora_B")]
            history.drop(kept.pop())
    with stretch(history, Phase.OPTIMIZER_STEP):
        for gradient in gradients:
            if is_first:
                history.add(1280 * KIB, "exp_avg", C.OPTIMIZER_STATE, "optimizer")
            history.drop(history.add(640 * KIB, "update", C.TEMPORARY, "optimizer"))
            history.drop(gradient)


def _layer(history: History, i: int, operations: int, *, keeps: bool = False) -> list[int]:
    made = []
    for k in range(operations):
        made.append(history.add((4 + k % 5 * 3) * MIB + 512 * k, f"operation {k}", C.ACTIVATION, f"model.layers.{i}.mlp"))
        weight = history.add(44 * MIB, "dequantised", C.TEMPORARY, f"model.layers.{i}.mlp")
        history.drop(weight)
    if not keeps:
        for storage in made:
            history.drop(storage)
        return []
    return made
