"""Gradients and clipping, against the real backward and the real clip_grad_norm_."""

from __future__ import annotations

import numpy as np
import pytest

from planner.dtypes import DType
from planner.formulas.blocks import TensorBytes, total_allocated, total_bytes
from planner.formulas.gradients import CHUNK_ELEMENTS, clip_grad_norm, gradient
from tests.live import LiveStorages

torch = pytest.importorskip("torch")

TORCH_DTYPES = {DType.BF16: torch.bfloat16, DType.FP32: torch.float32}


@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP32])
def test_a_gradient_has_its_parameters_type_and_outlives_micro_batches(dtype: DType) -> None:
    """Under autocast too: the backward of the cast brings it back; a second micro-batch adds in place."""
    layer = torch.nn.Linear(16, 24, bias=False, dtype=TORCH_DTYPES[dtype])
    x = torch.ones(4, 16, dtype=TORCH_DTYPES[dtype])
    places = set()
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).sum().backward()
        places.add(layer.weight.grad.data_ptr())
    grad = layer.weight.grad

    assert gradient("weight", 16 * 24, dtype) == TensorBytes("weight.grad", grad.numel() * grad.element_size())
    assert len(places) == 1


@pytest.mark.parametrize("dtype", [DType.BF16, DType.FP32])
def test_clipping_makes_norms_a_stack_and_scalars(dtype: DType) -> None:
    """The real call holds the second moment at its peak; what only the CUDA kernel makes, inside the norm, is in the first."""
    parameters = [torch.nn.Parameter(torch.ones(n, dtype=TORCH_DTYPES[dtype])) for n in (100, 7, 3000)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    with LiveStorages() as live:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
    inside, summing, scaling = clip_grad_norm([(100, 1), (7, 1), (3000, 1)], dtype)

    assert live.peak == total_bytes(summing) == 7 * dtype.num_bytes
    assert total_bytes(scaling) == 4 * dtype.num_bytes
    assert total_bytes(inside) == 3 * 1 * 4 + 3 * dtype.num_bytes


def test_clipping_1120_adapters_takes_the_traced_0_6_mb() -> None:
    """Llama-2-70B's LoRA tensors: a block of 512 bytes for each norm."""
    _, summing, _ = clip_grad_norm([(16 * 8192, 1120)], DType.BF16)

    assert total_allocated(summing) == 1120 * 512 + 2560 + 512


def test_partial_norms_follow_the_largest_tensor() -> None:
    """One fp32 for each tensor and each chunk of 65,536 elements of the largest."""
    inside = clip_grad_norm([(CHUNK_ELEMENTS * 2 + 1, 1), (5, 1)], DType.FP32)[0]

    assert inside[0].nbytes == 2 * 3 * 4


def test_arrays_of_sizes() -> None:
    """A grid of ranks gives a grid of bytes."""
    ranks = np.array([8, 16, 64])
    inside = clip_grad_norm([(ranks * 4096, 2), (ranks * 8192, 2)], DType.FP32)[0]  # type: ignore[list-item]

    assert inside[0].nbytes.tolist() == [clip_grad_norm([(r * 8192, 4)], DType.FP32)[0][0].nbytes for r in (8, 16, 64)]
    assert gradient("a", ranks, DType.BF16).nbytes.tolist() == [16, 32, 128]  # type: ignore[arg-type]
