"""Memory that CUDA kernels take from torch's allocator by themselves: cuBLAS's workspaces, scratch of attention's backward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.dtypes import DType
from planner.formulas.blocks import TensorBytes, Tensors, larger, smaller
from planner.units import KIB, MIB, ceil_div, round_up
from planner.value import NamedTuple

if TYPE_CHECKING:
    from planner.device import Device

PRODUCT_THREADS = ("forward", "autograd")
"""
The threads that multiply: each has a cuBLAS handle, and takes its workspace inside its first product and keeps it.

Source:
    torch@2.13.0, aten/src/ATen/cuda/CublasHandlePool.cpp: handles are pooled by thread, workspaces by (handle, stream);
    torch/csrc/autograd/engine.cpp: one backward thread for each device.
"""


def cublas_workspace(capability_major: int) -> int:
    """
    Bytes of one cuBLAS workspace, without `CUBLAS_WORKSPACE_CONFIG`.

    32 MiB on Hopper and Blackwell (9, 10, 12); elsewhere two pieces of 4,096 KiB and eight of 16 KiB. cuBLASLt uses the same one.

    Source:
        torch@2.13.0, aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize and getCUDABlasLtWorkspaceSize.
    """
    return 32 * MIB if capability_major in (9, 10, 12) else 2 * 4096 * KIB + 8 * 16 * KIB


def workspace_of(device: Device | None, capability: tuple[int, int]) -> int:
    """
    Bytes of one cuBLAS workspace on a card: what was measured there, else the formula.

    Args:
        device: The card; None for one like most.
        capability: Its compute capability, or that of one like most.
    """
    own = device.own.workspace_bytes if device is not None and device.own is not None else None
    return cublas_workspace(capability[0]) if own is None else own


class Attention(NamedTuple):
    """
    One attention over a batch whose queries and keys are equally many.

    Attributes:
        batch: Sequences.
        tokens: Tokens in each.
        heads: Query heads.
        kv_heads: Key and value heads.
        head_dim: Elements of one head.
        dtype: Type of queries, keys and values.
    """

    batch: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: DType


def flash_backward(attention: Attention) -> Tensors:
    """
    What the backward of flash attention makes beside its three gradients.

    Rows are padded to 128 tokens, heads to 32 elements (to 64 above 128).

    Returns:
        softmax_d [batch, heads, rows] fp32; dq_accum [batch, rows, heads, padded] fp32; where keys have fewer heads, dk and dv
        for every query head [batch, tokens, heads, head_dim] each, which are then summed. All are alive together.

    Source:
        torch@2.13.0, aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd, not deterministic.
    """
    a, fp32 = attention, DType.FP32.num_bytes
    rows, head_dim = round_up(a.tokens, 128), round_up(a.head_dim, 8)
    padded = round_up(head_dim, 32 if head_dim <= 128 else 64)
    scratch = (
        TensorBytes("softmax_d", a.batch * a.heads * rows * fp32),
        TensorBytes("dq_accum", a.batch * rows * a.heads * padded * fp32),
    )
    if a.kv_heads == a.heads:
        return scratch
    expanded = a.batch * a.tokens * a.heads * head_dim * a.dtype.num_bytes
    return (*scratch, TensorBytes("dk_expanded", expanded), TensorBytes("dv_expanded", expanded))


class Tile(NamedTuple):
    """
    The block that a kernel of memory-efficient attention works on.

    Attributes:
        rows: Queries.
        columns: Keys.
        in_registers: Whether the gradients of keys and values stay in registers.
    """

    rows: int
    columns: int
    in_registers: bool


def efficient_backward_tile(head_dim: int, dtype: DType, capability: tuple[int, int]) -> Tile:
    """
    The kernel that memory-efficient attention's backward takes, without dropout.

    Kernels are made for head sizes of 32, 64, 128 and any; above 64, 16-bit types have one of 128 rows first, and fall back to 64
    rows where its shared memory does not fit: on Turing, and on Ampere, Ada and Blackwell cards other than 8.0, 10.x (about 100
    KiB a block). 8.6 and 8.9 have a kernel of their own up to 96.

    Source:
        torch@2.13.0, aten/src/ATen/native/transformers/cuda/mem_eff_attention/kernels/generate_kernels.py, BwdKernel.get_all,
        whose comments name the cards that fall back; kernel_backward.h, kOutputInRF.
    """
    is_half = dtype.is_half
    if head_dim <= 64:
        return Tile(64, 64, is_half)
    if capability in ((8, 6), (8, 9)) and head_dim <= 96 and is_half:
        return Tile(128, 64, True)
    has_room = capability in ((7, 0), (8, 0), (8, 7)) or capability[0] in (9, 10)
    if not has_room or (not is_half and capability[0] < 8):
        return Tile(64, 64, False)
    if head_dim <= 128 and is_half:
        return Tile(128, 128 if capability[0] >= 8 else 64, True)
    return Tile(128, 64, False)


def efficient_backward(attention: Attention, capability: tuple[int, int]) -> Tensors:
    """
    What the backward of memory-efficient attention makes beside its gradients. It knows no grouped heads: keys come expanded.

    Returns:
        delta [batch, heads, tokens] fp32, and the workspace: for each head, tiles of dq in fp32 with 16 bytes of locks each;
        and, where the kernel does not keep 16-bit dk and dv in registers, an fp32 copy of a block of each for every split of
        the keys.

    Source:
        torch@2.13.0, aten/src/ATen/native/transformers/cuda/attention_backward.cu, _efficient_attention_backward;
        mem_eff_attention/kernel_backward.h, Params.workspace_size.
    """
    a, fp32 = attention, DType.FP32.num_bytes
    tile = efficient_backward_tile(a.head_dim, a.dtype, capability)
    heads = a.batch * a.heads
    tiles = ceil_div(a.tokens, tile.rows) * ceil_div(a.head_dim, tile.columns)
    dq = tiles * (16 + tile.rows * tile.columns * fp32)
    keys = 0
    if a.dtype.is_half and not tile.in_registers:
        splits = larger(1, smaller(ceil_div(a.tokens, tile.columns), 200 // heads))
        keys = 2 * splits * tile.columns * round_up(a.head_dim, tile.rows) * fp32
    return TensorBytes("delta", heads * a.tokens * fp32), TensorBytes("workspace", heads * round_up(dq + keys, 16))
