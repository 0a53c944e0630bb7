"""
Linear layers as they are without adapters: dense and quantised products.

Shapes: T tokens; k inputs and m outputs of the layer; r the adapter's rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.dtypes import DType
from planner.ledger import Category
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor
from planner.value import Value


class Lora(Value, eq=False):
    """One adapter on one linear: A [r, k], B [m, r], and DoRA's magnitude [m]."""

    rank: int
    a: Tensor
    b: Tensor
    dropout: float = 0.0
    magnitude: Tensor | None = None


class Linear(Value, eq=False):
    """
    A linear layer as the recipe leaves it.

    Attributes:
        inputs, outputs: k and m.
        weight: The dense weight, or a stand-in for the packed one.
        bias: Its bias, if any.
        quantization: nf4, fp4, int8 or None.
        quant_dtype: dtype that was handed to quantisation: what backward dequantises to (`quant_state.dtype`).
        compute_dtype: `bnb_4bit_compute_dtype`.
        nested: Double quantisation.
        fused_tokens: Up to so many tokens the 4-bit kernel multiplies without dequantising.
        lora: The adapter on it.
    """

    inputs: int
    outputs: int
    weight: Tensor
    bias: Tensor | None = None
    quantization: str | None = None
    quant_dtype: DType = DType.BF16
    compute_dtype: DType = DType.BF16
    nested: bool = True
    fused_tokens: int = 0
    lora: Lora | None = None


class Parameter(Value, eq=False):
    """
    A bare parameter as the recipe leaves it: experts [E, m, k], or a router's weight [m, k].

    Attributes:
        inputs, outputs: k and m.
        weight: The parameter.
        lora: The adapter that PEFT folds into it; rank * E rows of A, columns of B.
    """

    inputs: int
    outputs: int
    weight: Tensor
    lora: Lora | None = None


def base_linear(t: Tape, x: Tensor, layer: Linear) -> Tensor:
    """The layer without its adapter."""
    if layer.quantization is None:
        return product(t, x, layer.weight, layer.bias, layer.inputs, layer.outputs)
    if layer.quantization == "int8":
        return _linear_8bit(t, x, layer)
    return _linear_4bit(t, x, layer)


def product(t: Tape, x: Tensor, weight: Tensor, bias: Tensor | None, inputs: int, outputs: int, name: str = "output") -> Tensor:
    """
    F.linear: saves x [T, k] for a trainable weight and the weight for an x that needs a gradient; autocast copies its operands first.
    """
    x = t.lower(x)
    weight = t.lower(weight)
    bias = None if bias is None else t.lower(bias)
    tracked = t.tracks(x, weight, bias)
    saved = t.save(x if weight.requires_grad else None, weight if x.requires_grad else None) if tracked else None
    out = t.new(x.numel // inputs * outputs, x.dtype, name)
    t.multiplies()
    if tracked:
        x_numel = x.numel if x.requires_grad else None
        w_numel = weight.numel if weight.requires_grad else None
        b_numel = bias.numel if bias is not None and bias.requires_grad else None

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            dw = None if w_numel is None else t.new(w_numel, g.dtype, "gradient of a weight")
            if dw is not None:
                dw.is_view = True
            dx = None if x_numel is None else t.new(x_numel, g.dtype, "gradient of an input")
            t.multiplies()
            db = None if b_numel is None else t.new(b_numel, g.dtype, "gradient of a bias")
            return dx, dw, db

        t.record(out, (x, weight, bias), saved, backward)
    return out


def _linear_4bit(t: Tape, x: Tensor, layer: Linear) -> Tensor:
    """
    bitsandbytes' 4-bit product: the weight is dequantised whole, in forward and again in backward, and dropped each time.

    Source:
        bitsandbytes@0.50.2, nn/modules.py Linear4bit.forward; autograd/_functions.py MatMul4Bit; backends/cuda/ops.py
        _dequant_linear_fallback; functional.py dequantize_4bit.
    """
    dtype = x.dtype
    x = t.cast(x, layer.compute_dtype, "input in the compute dtype")
    bias = layer.bias
    if bias is not None:
        bias = t.cast(bias, layer.compute_dtype)
    return t.cast(_product_4bit(t, x, bias, layer), dtype)


def _product_4bit(t: Tape, x: Tensor, bias: Tensor | None, layer: Linear) -> Tensor:
    n, scales = layer.inputs * layer.outputs, -(-layer.inputs * layer.outputs // 64)
    tokens = x.numel // layer.inputs
    numel = tokens * layer.outputs
    if tokens <= layer.fused_tokens:
        out = t.new(numel, x.dtype, "output")
    else:
        flat = absmax = None
        if layer.nested:
            flat = t.new(scales, DType.FP32, "dequantised scales", Category.TEMPORARY)
            absmax = t.new(scales, DType.FP32, "scales with offset", Category.TEMPORARY)
        weight = t.new(n, x.dtype, "dequantised weight", Category.TEMPORARY)
        low, weight = t.lower(x.detach()), t.lower(weight)
        out = t.new(numel, low.dtype, "output")
        t.multiplies()
        del flat, absmax, weight, low  # locals of one Python function, which all live until it returns
    if t.tracks(x, bias):
        x_numel, quant_dtype, nested = x.numel, layer.quant_dtype, layer.nested

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            absmax = t.new(scales, DType.FP32, "dequantised scales") if nested else None
            weight = t.new(n, quant_dtype, "dequantised weight")
            del absmax
            weight = t.cast(weight, g.dtype, "dequantised weight, cast")
            dx = t.new(x_numel, g.dtype, "gradient of an input")
            t.multiplies()
            return dx, None

        t.record(out, (x, bias), None, backward)
    return out


def _linear_8bit(t: Tape, x: Tensor, layer: Linear) -> Tensor:
    """
    LLM.int8: rows of x quantised to int8, an int32 product, and x itself kept for backward by a plain attribute.

    Columns of x with outliers, which depend on the data, are kept beside it and not counted.

    Source:
        bitsandbytes@0.50.2, nn/modules.py Linear8bitLt.forward; autograd/_functions.py MatMul8bitLt; backends/cuda/ops.py
        int8_vectorwise_quant, int8_mm_dequant; threshold 6.0 as transformers' BitsAndBytesConfig sets it.
    """
    tokens = x.numel // layer.inputs
    half = t.cast(x.detach(), DType.FP16, "input in fp16", Category.TEMPORARY)
    stats = t.new(tokens, DType.FP32, "row statistics", Category.TEMPORARY)
    rows = t.new(x.numel, DType.INT8, "input in int8", Category.TEMPORARY)
    magnitudes = t.new(x.numel, DType.FP16, "absolute input", Category.TEMPORARY)
    outliers = t.new(x.numel, DType.BOOL, "outlier mask", Category.TEMPORARY)
    del magnitudes, outliers, half
    integers = t.new(tokens * layer.outputs, DType.INT32, "integer product", Category.TEMPORARY)
    out = t.cast(t.new(tokens * layer.outputs, DType.FP16, "output"), x.dtype)
    del integers, rows, stats
    if t.tracks(x):
        x_numel, n, dtype = x.numel, layer.inputs * layer.outputs, x.dtype

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            weight = t.new(n, dtype, "dequantised weight")
            g = t.cast(g, dtype)
            dx = t.new(x_numel, dtype, "gradient of an input")
            t.multiplies()
            return (dx,)

        t.record(out, (x,), None, backward)
        t.keep(x.detach())  # ctx.tensors: a plain attribute, which no saved-tensor hook sees
    return out
