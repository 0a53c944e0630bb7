"""LoRA adapters as PEFT builds them: the tensors of each kind of target, and what DoRA makes in a forward."""

from __future__ import annotations

from planner.dtypes import DType
from planner.formulas.blocks import Moments, TensorBytes, Tensors, TensorShape
from planner.formulas.weights import BLOCK_ELEMENTS
from planner.units import ceil_div

Adapter = tuple[TensorShape, ...]
"""The trainable tensors that one target gets. rsLoRA and alpha change the scale only, and no shape."""


def lora_linear(in_features: int, out_features: int, rank: int, *, dora: bool = False) -> Adapter:
    """
    LoRA on a linear or a `Conv1D`: A [r, in], B [out, r]; with DoRA a magnitude [out].

    Source:
        peft@0.21.2, tuners/lora/layer.py, LoraLayer.update_layer; tuners/lora/dora.py, DoraLinearLayer.update_layer.
    """
    pair = TensorShape("lora_A.weight", (rank, in_features)), TensorShape("lora_B.weight", (out_features, rank))
    return (*pair, TensorShape("lora_magnitude_vector.weight", (out_features,))) if dora else pair


def lora_embedding(rows: int, width: int, rank: int, *, dora: bool = False) -> Adapter:
    """
    LoRA on an embedding: A [r, rows], B [width, r]; with DoRA a magnitude [width].

    Source:
        peft@0.21.2, tuners/lora/layer.py, Embedding.update_layer; tuners/lora/variants.py, DoraEmbeddingVariant.init.
    """
    pair = TensorShape("lora_embedding_A", (rank, rows)), TensorShape("lora_embedding_B", (width, rank))
    return (*pair, TensorShape("lora_magnitude_vector.weight", (width,))) if dora else pair


def lora_experts(num_experts: int, in_features: int, out_features: int, rank: int) -> Adapter:
    """
    LoRA on a bare parameter that stacks experts: A [r * experts, in], B [out, r * experts].

    PEFT refuses dropout, DoRA and a bias on these.

    Args:
        num_experts: Experts in the stack; 1 for a two-dimensional parameter.
        in_features: Width of one expert's input: the last axis, or the middle one where the module says `is_transposed`.
        out_features: Width of one expert's output.
        rank: The rank of one expert's update; PEFT doubles it for a fused gate and up projection.

    Source:
        peft@0.21.2, tuners/lora/layer.py, ParamWrapper.update_layer.
    """
    return (
        TensorShape("lora_A.weight", (rank * num_experts, in_features)),
        TensorShape("lora_B.weight", (out_features, rank * num_experts)),
    )


def dora_forward(
    in_features: int,
    out_features: int,
    rank: int,
    *,
    adapter_dtype: DType,
    input_dtype: DType,
    weight_dtype: DType,
    quantized: bool,
    autocast_dtype: DType | None = None,
    double_quant: bool = False,
) -> Moments:
    """
    What DoRA makes beside the ordinary LoRA product, on every forward of every target: it multiplies B and A out through an
    identity matrix.

    Args:
        in_features: K.
        out_features: M.
        rank: r.
        adapter_dtype: Type of A and B.
        input_dtype: Type of the input of A.
        weight_dtype: Type of the base weight, or the type that a quantised one is dequantised to.
        quantized: Whether the base weight is in 4 bits, and has to be dequantised.
        autocast_dtype: What autocast computes products in; None where it is off.
        double_quant: Whether the 4-bit statistics are quantised too.

    Returns:
        The moments in order, [K,K] and [M,K] tensors as each has them alive: making the update; casting it; reading the base
        weight and casting it; the scaled update and the sum. The norm [M] of the sum is born beside the last; autocast asks for
        it in fp32, which CUDA's reduction accumulates in without a copy of the sum.

    Source:
        peft@0.21.2, tuners/lora/dora.py, DoraLinearLayer.get_lora_weight, get_weight_norm and forward; torch@2.13.0,
        ATen/autocast_mode.h (linalg_vector_norm sets its dtype argument), aten/src/ATen/native/ReduceOpsUtils.h, make_reduction.
    """
    square, matrix = in_features * in_features, out_features * in_features
    product = autocast_dtype or adapter_dtype
    eye = TensorBytes("identity", square * adapter_dtype.num_bytes)
    # A needs a gradient, so its product keeps the identity matrix, in the type that it was multiplied in, as long as the
    # update lives.
    kept_eye = TensorBytes("identity", square * product.num_bytes)
    eyes: Tensors = (eye,) if product is adapter_dtype else (eye, kept_eye)
    reduced = TensorBytes("identity through A", in_features * rank * product.num_bytes)
    update = TensorBytes("lora_weight", matrix * product.num_bytes)
    moments: list[Tensors] = [(*eyes, reduced, update)]
    if product is not input_dtype:
        cast = TensorBytes("cast lora_weight", matrix * input_dtype.num_bytes)
        moments.append((kept_eye, reduced, update, cast))
        update = cast
    held: Tensors = (kept_eye, reduced, update)
    if quantized:
        statistics = TensorBytes("absmax", ceil_div(matrix, BLOCK_ELEMENTS) * DType.FP32.num_bytes)
        dense = TensorBytes("dequantised weight", matrix * weight_dtype.num_bytes)
        moments.append((*held, *((statistics,) if double_quant else ()), dense))
        if weight_dtype is input_dtype:
            held = (*held, dense)
    if weight_dtype is not input_dtype:
        cast = TensorBytes("cast weight", matrix * input_dtype.num_bytes)
        moments.append((*held, *((dense,) if quantized else ()), cast))
        held = (*held, cast)
    scaled = TensorBytes("scaled lora_weight", matrix * input_dtype.num_bytes)
    total = TensorBytes("weight + scaled lora_weight", matrix * input_dtype.num_bytes)
    moments.append((*held, scaled, total))
    return tuple(moments)


def dora_kept_weight(
    in_features: int,
    out_features: int,
    *,
    input_dtype: DType,
    weight_dtype: DType,
    quantized: bool,
    autocast_dtype: DType | None = None,
) -> Tensors:
    """
    The dense base weight that DoRA with dropout keeps from the forward of a target to its backward; without dropout it keeps
    none.

    With dropout the base result is computed again from the dropped input, `F.linear(x, weight)`, and the gradient of x needs
    the weight. It is a copy wherever the weight had to be dequantised or cast; a plain weight in the type of the product is the
    parameter itself.

    Args:
        in_features: K.
        out_features: M.
        input_dtype: Type of the input of A.
        weight_dtype: Type of the base weight, or the type that a quantised one is dequantised to.
        quantized: Whether the base weight is in 4 bits.
        autocast_dtype: What autocast computes products in; None where it is off.

    Source:
        peft@0.21.2, tuners/lora/variants.py, DoraLinearVariant.forward: `base_result = None` unless dropout is an identity;
        tuners/lora/dora.py, DoraLinearLayer.forward.
    """
    product = autocast_dtype or input_dtype
    if not quantized and weight_dtype is input_dtype and input_dtype is product:
        return ()
    return (TensorBytes("base weight", in_features * out_features * product.num_bytes),)


def saved_module(parameters: Adapter) -> Adapter:
    """
    `modules_to_save`: a trainable copy of each parameter of the module, beside the frozen original, which stays.

    Source:
        peft@0.21.2, utils/other.py, ModulesToSaveWrapper.update: `copy.deepcopy(self.original_module)`.
    """
    return tuple(TensorShape(f"modules_to_save.{tensor.name}", tensor.shape) for tensor in parameters)
