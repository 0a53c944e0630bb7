"""DoRA: LoRA whose direction is normalised by the merged weight, which every forward therefore materialises."""

from __future__ import annotations

from planner.dtypes import DType, promote
from planner.ledger import Category
from planner.operations.elementwise import add, add_constant, dropout, mul_broadcast, scale
from planner.operations.linear import Linear, Lora, product
from planner.schedule import Tape
from planner.tensors import Tensor


def dora(t: Tape, x: Tensor, result: Tensor, layer: Linear, lora: Lora) -> Tensor:
    """
    result + the DoRA branch. With dropout the base product is made again from the dropped input, and keeps the dense weight for backward.

    Source:
        peft@0.21.2, tuners/lora/variants.py, DoraLinearVariant.forward.
    """
    base = None if lora.dropout else result
    x = dropout(t, x, lora.dropout)
    return add(t, result, _branch(t, x, base, layer, lora), "output with adapter")


def _branch(t: Tape, x: Tensor, base: Tensor | None, layer: Linear, lora: Lora) -> Tensor:
    """
    (s - 1) * base + s * B(A(x)) * scaling, with s = magnitude / row norms of W + scaling * BA.

    Source:
        peft@0.21.2, tuners/lora/dora.py, DoraLinearLayer.forward.
    """
    assert lora.magnitude is not None
    delta, graph = _delta(t, layer, lora)
    delta = t.cast(delta, x.dtype)
    weight = t.cast(_dense(t, layer), x.dtype, "dense weight", Category.TEMPORARY)
    norm = _row_norms(t, weight, layer)
    factor = _factor(t, lora.magnitude, norm)
    adapted = product(t, product(t, x, lora.a, None, layer.inputs, lora.rank), lora.b, None, lora.rank, layer.outputs)
    if base is None:
        base = product(t, x, weight, None, layer.inputs, layer.outputs, "base output again")
    elif layer.bias is not None:
        base = add_constant(t, base, promote(base.dtype, layer.bias.dtype), "base output without bias")
    one = mul_broadcast(t, base, add_constant(t, factor), "rescaled base")
    out = add(t, one, scale(t, mul_broadcast(t, adapted, factor)), "DoRA output")
    del delta, graph, weight, norm, adapted, base
    return out


def _delta(t: Tape, layer: Linear, lora: Lora) -> tuple[Tensor, list[Tensor]]:
    """
    B(A(eye)).T [m, k], from an identity matrix [k, k], and what its unused graph keeps until it dies.

    Source:
        peft@0.21.2, tuners/lora/dora.py, DoraLinearLayer.get_lora_weight.
    """
    inputs = layer.inputs
    t.lower(lora.a), t.lower(lora.b)  # the copies that autocast keeps for the adapter itself
    identity = t.new(inputs * inputs, lora.a.dtype, "identity", Category.TEMPORARY)
    eye = t.lower(identity)
    dtype = eye.dtype
    bottleneck = t.new(inputs * lora.rank, dtype, "A of the identity", Category.TEMPORARY)
    graph = [] if t.drops_saved or not t.grad_enabled else [eye, bottleneck]
    del eye
    delta = t.new(inputs * layer.outputs, dtype, "merged adapter", Category.TEMPORARY)
    del identity
    return delta, graph


def _dense(t: Tape, layer: Linear) -> Tensor:
    """The base weight as a dense tensor: itself, or dequantised in the dtype that was quantised."""
    if layer.quantization is None:
        return layer.weight
    n = layer.inputs * layer.outputs
    scales = t.new(-(-n // 64), DType.FP32, "dequantised scales", Category.TEMPORARY) if layer.nested else None
    weight = t.new(n, layer.quant_dtype, "dequantised weight", Category.TEMPORARY)
    del scales
    return weight


def _row_norms(t: Tape, weight: Tensor, layer: Linear) -> Tensor:
    """
    The norm of each row of W + scaling * BA. Autocast takes norms in fp32, which the reduction of CUDA accumulates in without a copy.

    Source:
        torch@2.13.0, ATen/autocast_mode.h (linalg_vector_norm sets its dtype argument), ATen/native/ReduceOpsUtils.h, make_reduction
        (gpu_lowp_to_f32).
    """
    n = layer.inputs * layer.outputs
    scaled = t.new(n, weight.dtype, "scaled adapter", Category.TEMPORARY)
    merged = t.new(n, weight.dtype, "merged weight", Category.TEMPORARY)
    del scaled
    del merged
    return t.new(layer.outputs, weight.dtype, "row norms", Category.TEMPORARY)


def _factor(t: Tape, magnitude: Tensor, norm: Tensor) -> Tensor:
    """magnitude / norm [m], trained."""
    out = t.new(magnitude.numel, magnitude.dtype, "magnitude / norm")
    if t.tracks(magnitude):
        numel, dtype = magnitude.numel, magnitude.dtype
        t.record(out, (magnitude,), t.save(norm), lambda t, grads, saved: (t.new(numel, dtype, "gradient of a magnitude"),))
    return out
