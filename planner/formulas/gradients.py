"""Gradients, and what clipping their norm takes."""

from __future__ import annotations

from collections.abc import Sequence

from planner.dtypes import DType
from planner.formulas.blocks import Moments, TensorBytes, largest
from planner.units import ceil_div

# aten/src/ATen/native/cuda/MultiTensorApply.cuh: the piece of a tensor that one block of a foreach kernel works on.
CHUNK_ELEMENTS = 65536


def gradient(name: str, numel: int, dtype: DType) -> TensorBytes:
    """
    The gradient of one parameter, in the parameter's own type.

    It is made in the backward, kept over every micro-batch of an accumulation (each adds in place) and through the optimizer
    step, and freed by `zero_grad(set_to_none=True)`. Under autocast the product is computed in 16 bits and cast: a parameter in
    fp32 has an fp32 gradient.

    Source:
        torch@2.13.0, torch/csrc/autograd/functions/accumulate_grad.h; torch/optim/optimizer.py, Optimizer.zero_grad.
    """
    return TensorBytes(f"{name}.grad", numel * dtype.num_bytes)


def clip_grad_norm(numels: Sequence[tuple[int, int]], dtype: DType) -> Moments:
    """
    What `clip_grad_norm_` makes over gradients that all have one type.

    Args:
        numels: Elements of a gradient, and how many gradients have so many.
        dtype: Their type.

    Returns:
        Three moments. In the foreach norm: partial sums, one fp32 for each tensor and chunk of the largest (65,536 elements), and
        the norms, a tensor of one element each. Then the norms, their stack and the total. Then the total, its sum with epsilon,
        the coefficient before and after clamping. The scaling is in place.

    Source:
        torch@2.13.0, nn/utils/clip_grad.py, _get_total_norm and _clip_grads_with_norm_;
        aten/src/ATen/native/cuda/ForeachReduceOp.cu, foreach_tensor_norm_cuda.
    """
    count, size = sum(times for _, times in numels), dtype.num_bytes
    chunks = ceil_div(largest(numel for numel, _ in numels), CHUNK_ELEMENTS)
    partial = TensorBytes("partial norms", count * chunks * DType.FP32.num_bytes)
    norms = TensorBytes("norm", size, count)
    total = TensorBytes("total norm", size)
    coefficients = tuple(TensorBytes(name, size) for name in ("total norm + eps", "clip coefficient", "clamped coefficient"))
    return (partial, norms), (norms, TensorBytes("stacked norms", count * size), total), (total, *coefficients)
