"""Kernel scratch, against the C++ sources written out in letters and against the figures of the tracing oracle."""

from __future__ import annotations

import numpy as np
import pytest

from planner.dtypes import DType
from planner.formulas.blocks import total_bytes
from planner.formulas.workspace import (
    PRODUCT_THREADS,
    Attention,
    Tile,
    cublas_workspace,
    efficient_backward,
    efficient_backward_tile,
    flash_backward,
)

LLAMA_70B = Attention(batch=1, tokens=4096, heads=64, kv_heads=8, head_dim=128, dtype=DType.BF16)


@pytest.mark.parametrize(
    ("major", "expected"), [(7, 8_519_680), (8, 8_519_680), (9, 33_554_432), (10, 33_554_432), (11, 8_519_680), (12, 33_554_432)]
)
def test_cublas_workspaces(major: int, expected: int) -> None:
    """8.125 MiB, and 32 MiB on Hopper and Blackwell; one for each thread that multiplies."""
    assert cublas_workspace(major) == expected
    assert len(PRODUCT_THREADS) == 2


def test_flash_backward_of_70b_at_4096_tokens() -> None:
    """134.2 MB of dq, 1.0 MB of softmax_d and two expanded gradients of 67.1 MB."""
    assert [tensor.nbytes for tensor in flash_backward(LLAMA_70B)] == [1_048_576, 134_217_728, 67_108_864, 67_108_864]


def test_flash_backward_without_grouped_heads_expands_nothing() -> None:
    """Two buffers; rows are padded to 128, a head of 80 to 96, one of 160 to 192."""
    for head_dim, padded in ((64, 64), (80, 96), (96, 96), (100, 128), (160, 192)):
        scratch = flash_backward(Attention(2, 130, 4, 4, head_dim, DType.BF16))
        assert [tensor.nbytes for tensor in scratch] == [4 * 2 * 4 * 256, 4 * 2 * 256 * 4 * padded]


@pytest.mark.parametrize(
    ("head_dim", "dtype", "capability", "tile"),
    [
        (64, DType.FP16, (7, 5), Tile(64, 64, True)),
        (128, DType.FP16, (7, 5), Tile(64, 64, False)),
        (128, DType.FP16, (7, 0), Tile(128, 64, True)),
        (128, DType.BF16, (8, 0), Tile(128, 128, True)),
        (80, DType.BF16, (8, 9), Tile(128, 64, True)),
        (128, DType.BF16, (8, 9), Tile(64, 64, False)),
        (128, DType.BF16, (12, 0), Tile(64, 64, False)),
        (256, DType.BF16, (9, 0), Tile(128, 64, False)),
        (64, DType.FP32, (8, 0), Tile(64, 64, False)),
        (128, DType.FP32, (8, 0), Tile(128, 64, False)),
    ],
)
def test_the_kernel_of_a_card(head_dim: int, dtype: DType, capability: tuple[int, int], tile: Tile) -> None:
    """The first kernel of PyTorch's generated list that the card can run."""
    assert efficient_backward_tile(head_dim, dtype, capability) == tile


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("tokens", [512, 1024, 4096])
def test_efficient_backward_is_the_oracles_and_its_locks(head_dim: int, tokens: int) -> None:
    """The oracle's delta and dq of tokens by head size in fp32; the real tiles have 16 bytes of locks each."""
    B, H = 2, 32
    oracle = 4 * B * H * tokens + 4 * B * tokens * H * head_dim
    scratch = efficient_backward(Attention(B, tokens, H, H, head_dim, DType.BF16), (8, 0))
    tiles = B * H * (tokens // (64 if head_dim == 64 else 128)) * 1

    assert total_bytes(scratch) == oracle + 16 * tiles


def test_keys_that_leave_the_registers_are_accumulated_in_fp32() -> None:
    """On a T4 with heads of 128: dk and dv, 64 keys by 128 for each of at most 200 / (B * H) splits."""
    B, S, H, D = 2, 1024, 12, 128
    splits = 200 // (B * H)
    dq = (S // 64) * (D // 64) * (16 + 64 * 64 * 4)
    _, workspace = efficient_backward(Attention(B, S, H, H, D, DType.FP16), (7, 5))

    assert splits == 8
    assert workspace.nbytes == B * H * (dq + 2 * splits * 64 * D * 4)


def test_arrays_of_tokens() -> None:
    """A grid of lengths gives a grid of bytes."""
    tokens = np.array([128, 512, 1000, 4096])
    for scratch in (flash_backward, lambda a: efficient_backward(a, (8, 9))):
        grid = total_bytes(scratch(LLAMA_70B._replace(tokens=tokens)))  # type: ignore[arg-type]
        assert list(grid) == [total_bytes(scratch(LLAMA_70B._replace(tokens=int(t)))) for t in tokens]  # type: ignore[call-overload]
