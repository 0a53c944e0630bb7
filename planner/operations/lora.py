"""
Linear layers with the adapters that PEFT puts on them.

Shapes: T tokens; k inputs and m outputs of the layer; r the adapter's rank.
"""

from __future__ import annotations

from planner.operations.elementwise import add, copy, dropout, scale
from planner.operations.linear import Linear, Lora, base_linear, product
from planner.schedule import Tape
from planner.tensors import Tensor


def linear(t: Tape, x: Tensor, layer: Linear, name: str = "") -> Tensor:
    """
    The layer with its adapter: x [T, k] -> [T, m].

    Source:
        peft@0.21.2, tuners/lora/layer.py Linear.forward; tuners/lora/bnb.py Linear4bit.forward, Linear8bitLt.forward.
    """
    before, t.scope = t.scope, name or t.scope
    try:
        if layer.lora is None:
            return base_linear(t, x, layer)
        if layer.quantization is None:
            return _adapted(t, x, layer, layer.lora)
        return _adapted_quantized(t, x, layer, layer.lora)
    finally:
        t.scope = before


def _adapted(t: Tape, x: Tensor, layer: Linear, lora: Lora) -> Tensor:
    """A dense base: x is cast to the adapter's dtype, whatever autocast does with it next."""
    result = base_linear(t, x, layer)
    dtype = result.dtype
    x = t.cast(x, lora.a.dtype, "input in the adapter's dtype")
    if lora.magnitude is not None:
        result = _dora(t, x, result, layer, lora)
    else:
        result = add(t, result, scale(t, _branch(t, x, layer, lora)), "output with adapter")
    return t.cast(result, dtype)


def _adapted_quantized(t: Tape, x: Tensor, layer: Linear, lora: Lora) -> Tensor:
    """A quantised base: its output is cloned, and x is cast only where autocast is off."""
    result = base_linear(t, x, layer)
    result = copy(t, result, "defensive clone")
    dtype = result.dtype
    converts = t.autocast is None
    if converts:
        x = t.cast(x, lora.a.dtype, "input in the adapter's dtype")
    if lora.magnitude is not None:
        result = _dora(t, x, result, layer, lora)
        return t.cast(result, dtype) if converts else result
    output = scale(t, _branch(t, x, layer, lora))
    if converts:
        output = t.cast(output, dtype)
    result = add(t, result, output, "output with adapter")
    return result


def _dora(t: Tape, x: Tensor, result: Tensor, layer: Linear, lora: Lora) -> Tensor:
    from planner.operations.dora import dora

    return dora(t, x, result, layer, lora)


def _branch(t: Tape, x: Tensor, layer: Linear, lora: Lora) -> Tensor:
    """lora_B(lora_A(dropout(x)))."""
    return product(t, _down(t, x, layer, lora), lora.b, None, lora.rank, layer.outputs, "adapter output")


def _down(t: Tape, x: Tensor, layer: Linear, lora: Lora) -> Tensor:
    return product(t, dropout(t, x, lora.dropout), lora.a, None, layer.inputs, lora.rank, "adapter bottleneck")
