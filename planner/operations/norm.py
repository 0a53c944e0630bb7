"""
Normalisations, as the modeling code spells them in Python or calls them as one kernel.

Shapes: rows x width elements; statistics are one fp32 number a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.dtypes import DType
from planner.operations.elementwise import add_constant, mul_broadcast, row_mean, rsqrt, square
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor
from planner.value import Value


class Norm(Value, eq=False):
    """
    A normalisation as the recipe leaves it.

    Attributes:
        kind: `rms` (Llama), `rms_fp32_weight` (Olmo2, GLM: the weight multiplies in fp32), `rms_plus_one` (Gemma: times 1 + weight,
            in fp32), `layer` (nn.LayerNorm), `layer_fp32` (Cohere: in Python, in fp32, with a weight), `bare_layer` (OLMo: F.layer_norm in
            fp32 without a weight).
        width: Elements that are normalised together.
        weight: None where there is none.
        bias: None where there is none.
    """

    kind: str
    width: int
    weight: Tensor | None
    bias: Tensor | None = None


def norm(t: Tape, x: Tensor, layer: Norm) -> Tensor:
    """Normalise x over its last `layer.width` elements."""
    return _KINDS[layer.kind](t, x, layer)


def _normalised(t: Tape, x: Tensor, rows: int) -> Tensor:
    """x * rsqrt(mean(x ** 2) + eps), for an fp32 x; the mean lives until the product is made."""
    variance = row_mean(t, square(t, x), rows)
    return mul_broadcast(t, x, rsqrt(t, add_constant(t, variance)), "normalised")


def _rms(t: Tape, x: Tensor, layer: Norm) -> Tensor:
    """
    weight * normalised.to(dtype).

    Source:
        transformers@5.23.0, models/llama/modeling_llama.py, LlamaRMSNorm.forward.
    """
    assert layer.weight is not None
    dtype = x.dtype
    x = t.cast(x, DType.FP32, "norm input in fp32")
    variance = row_mean(t, square(t, x), x.numel // layer.width)
    x = mul_broadcast(t, x, rsqrt(t, add_constant(t, variance)), "normalised")
    return mul_broadcast(t, t.cast(x, dtype, "normalised, cast"), layer.weight, "norm output")


def _rms_fp32_weight(t: Tape, x: Tensor, layer: Norm) -> Tensor:
    """
    (weight * normalised).to(dtype).

    Source:
        transformers@5.23.0, models/olmo2/modeling_olmo2.py, Olmo2RMSNorm.forward.
    """
    assert layer.weight is not None
    dtype = x.dtype
    x = t.cast(x, DType.FP32, "norm input in fp32")
    variance = row_mean(t, square(t, x), x.numel // layer.width)
    x = mul_broadcast(t, x, rsqrt(t, add_constant(t, variance)), "normalised")
    return t.cast(mul_broadcast(t, x, layer.weight), dtype, "norm output")


def _rms_plus_one(t: Tape, x: Tensor, layer: Norm) -> Tensor:
    """
    (normalised * (1 + weight.float())).type_as(x).

    Source:
        transformers@5.23.0, models/gemma2/modeling_gemma2.py, Gemma2RMSNorm.forward.
    """
    assert layer.weight is not None
    output = _normalised(t, t.cast(x, DType.FP32, "norm input in fp32"), x.numel // layer.width)
    output = mul_broadcast(t, output, add_constant(t, t.cast(layer.weight, DType.FP32), name="1 + weight"))
    return t.cast(output, x.dtype, "norm output")


def _layer(t: Tape, x: Tensor, layer: Norm) -> Tensor:
    """
    nn.LayerNorm, one kernel: saves its input, two fp32 statistics a row and its parameters. Autocast casts them all to fp32.

    Source:
        torch@2.13.0, aten/src/ATen/autocast_mode.h (fp32 list), native/cuda/layer_norm_kernel.cu.
    """
    weight, bias = layer.weight, layer.bias
    if t.autocast is not None:
        x = t.cast(x, DType.FP32, "norm input in fp32")
        weight = None if weight is None else t.cast(weight, DType.FP32, "norm weight in fp32")
        bias = None if bias is None else t.cast(bias, DType.FP32, "norm bias in fp32")
    rows, numel = x.numel // layer.width, x.numel
    params = (weight, bias)
    out = t.new(numel, x.dtype, "norm output")
    mean = t.new(rows, DType.FP32, "row mean")
    rstd = t.new(rows, DType.FP32, "row deviation")
    if t.tracks(x, *params):
        sizes = [p.numel if p is not None and p.requires_grad else None for p in params]
        wants_x = x.requires_grad

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            dx = t.new(numel, g.dtype, "gradient of an input") if wants_x else None
            dw, db = (None if n is None else t.new(n, g.dtype, "gradient of a norm") for n in sizes)
            return dx, dw, db

        t.record(out, (x, *params), t.save(x, mean, rstd, *params), backward)
    return out


def _bare_layer(t: Tape, x: Tensor, layer: Norm) -> Tensor:
    """
    F.layer_norm(x.to(fp32), ...).to(dtype), without parameters.

    Source:
        transformers@5.23.0, models/olmo/modeling_olmo.py, OlmoLayerNorm.forward.
    """
    dtype = x.dtype
    return t.cast(_layer(t, t.cast(x, DType.FP32, "norm input in fp32"), layer), dtype, "norm output")


def _layer_fp32(t: Tape, x: Tensor, layer: Norm) -> Tensor:
    """
    Mean and variance in Python: (weight.float() * ((x - mean) * rsqrt(variance))).to(dtype).

    Source:
        transformers@5.23.0, models/cohere/modeling_cohere.py, CohereLayerNorm.forward.
    """
    assert layer.weight is not None
    dtype, rows = x.dtype, x.numel // layer.width
    x = t.cast(x, DType.FP32, "norm input in fp32")
    mean = row_mean(t, x, rows)
    variance = row_mean(t, square(t, _minus(t, x, mean)), rows)
    x = mul_broadcast(t, _minus(t, x, mean), rsqrt(t, add_constant(t, variance)), "normalised")
    x = mul_broadcast(t, x, t.cast(layer.weight, DType.FP32))
    return t.cast(x, dtype, "norm output")


def _minus(t: Tape, x: Tensor, mean: Tensor) -> Tensor:
    """x - mean: saves nothing; the mean's gradient is a sum over each row."""
    out = t.new(x.numel, x.dtype, "centred")
    if t.tracks(x, mean):
        rows = mean.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            negated = t.new(g.numel, g.dtype, "negated gradient")
            total = t.new(rows, g.dtype, "gradient of a mean")
            del negated
            return g, total

        t.record(out, (x, mean), None, backward)
    return out


def _l2(t: Tape, x: Tensor, layer: Norm) -> Tensor:
    """
    normalised(x.float()).type_as(x), without a weight.

    Source:
        transformers@5.23.0, models/llama4/modeling_llama4.py, Llama4TextL2Norm.forward.
    """
    return t.cast(_normalised(t, t.cast(x, DType.FP32, "norm input in fp32"), x.numel // layer.width), x.dtype, "norm output")


_KINDS = {
    "l2": _l2,
    "rms": _rms,
    "rms_fp32_weight": _rms_fp32_weight,
    "rms_plus_one": _rms_plus_one,
    "layer": _layer,
    "bare_layer": _bare_layer,
    "layer_fp32": _layer_fp32,
}
