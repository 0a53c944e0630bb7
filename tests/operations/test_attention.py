"""
Eager attention and rotary positions against transformers on the CPU; kernels, which only CUDA has, by what they are written to make.

`native_dropout` stands for dropout, as on CUDA; the CPU's softmax backward makes nothing inside itself, and neither is that counted.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from planner.architecture.decoder import Attention
from planner.dtypes import DType
from planner.operations.attention import Positions, Shape, attend, plain_softmax, softmax
from planner.operations.elementwise import concatenate, scale
from planner.operations.rotary import apply_rotary, rotary_tables
from planner.tensors import Tensor
from tests.live import TORCH, of_tape, of_torch, pair

torch = pytest.importorskip("torch")
llama = pytest.importorskip("transformers.models.llama.modeling_llama")
transformers = pytest.importorskip("transformers")

BF16, FP16, FP32 = DType.BF16, DType.FP16, DType.FP32
S, H, DIM = 16, 4, 8


def by_head(x: torch.Tensor, batch: int, heads: int) -> torch.Tensor:
    """A projection's output as attention sees it: [B, H, S, h], strided."""
    return x.view(batch, S, heads, DIM).transpose(1, 2)


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "causal"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_eager(dtype, batch, kv_heads, masked):
    """Scores, their copies and the repeated keys and values of `eager_attention_forward`."""
    module = SimpleNamespace(num_key_value_groups=H // kv_heads, training=False)
    mask = torch.zeros(batch, 1, S, S, dtype=TORCH[dtype]) if masked else None
    pairs = [pair((batch, S, heads * DIM), dtype) for heads in (H, kv_heads, kv_heads)]
    shape = Shape(batch, S, H, kv_heads, DIM, DIM)
    positions = Positions(mask=Tensor(None, batch * S * S, dtype) if masked else None)

    def real(q, k, v):
        q, k, v = (by_head(x * 2.0, batch, heads) for x, heads in ((q, H), (k, kv_heads), (v, kv_heads)))
        out, _weights = llama.eager_attention_forward(module, q, k, v, mask, scaling=0.1, dropout=0.0)
        return out * 2.0

    def planned(t, q, k, v):
        q, k, v = (scale(t, x) for x in (q, k, v))
        held: list[Tensor] = []
        return scale(t, attend(t, q, k, v, shape, positions, "eager", Attention(H, kv_heads, DIM), held))

    assert of_torch(real, *(x for x, _ in pairs)) == of_tape(planned, *(ours for _, ours in pairs))


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_softmax_in_fp32(dtype):
    """bf16 is copied first; fp16 is read as it is on CUDA alone, so only its output is compared."""
    x, ours = pair((2, S, S), dtype)
    real = of_torch(lambda x: torch.softmax(x * 2.0, -1, dtype=torch.float32) * 2.0, x)

    def planned_one(t, x):
        held = scale(t, x)  # as an argument is in Python
        out = softmax(t, held, FP32)
        del held
        return scale(t, out)

    planned = of_tape(planned_one, ours)

    assert real.kept == planned.kept
    if dtype is not FP16:
        assert real == planned


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_softmax_in_its_own_type(dtype):
    """GPT-2's softmax has no dtype."""
    x, ours = pair((2, S, S), dtype)

    assert of_torch(lambda x: torch.softmax(x * 2.0, -1) * 2.0, x) == of_tape(
        lambda t, x: scale(t, plain_softmax(t, scale(t, x))), ours
    )


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_rotary_tables(dtype):
    """Cosines and sines are made in fp32 and cast to the hidden states' type."""
    config = transformers.LlamaConfig(hidden_size=H * DIM, num_attention_heads=H, max_position_embeddings=S)
    module = llama.LlamaRotaryEmbedding(config)
    x, ours = pair((1, S, H * DIM), dtype, grad=False)
    ids = torch.arange(S)[None]
    kept = []

    def real(x):
        kept[:] = module(x, ids)
        return kept[0]

    def planned(t, x):
        kept[:] = rotary_tables(t, S, DIM, dtype)
        return kept[0]

    assert of_torch(real, x)[:2] == of_tape(planned, ours)[:2]


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_rotary(dtype):
    """`apply_rotary_pos_emb` turns queries and keys by halves."""
    (q, ours_q), (k, ours_k) = pair((1, S, H * DIM), dtype), pair((1, S, 2 * DIM), dtype)
    (cos, ours_cos), (sin, ours_sin) = (pair((1, S, DIM), dtype, grad=False) for _ in range(2))

    def real(q, k):
        q, k = by_head(q * 2.0, 1, H), by_head(k * 2.0, 1, 2)
        q, k = llama.apply_rotary_pos_emb(q, k, cos, sin)
        return torch.cat((q, k), 1)

    def planned(t, q, k):
        q, k = scale(t, q), scale(t, k)
        q, k, _held = apply_rotary(t, q, k, ours_cos, ours_sin, Attention(H, 2, DIM, rotary_dim=DIM))
        return concatenate(t, (q, k))

    assert of_torch(real, q, k) == of_tape(planned, ours_q, ours_k)


@pytest.mark.parametrize("kernel", ["flash", "efficient"])
def test_kernels_keep_no_scores(kernel):
    """Nothing of [S, S] is made without a mask: operands, output, one statistic a query."""
    sizes = {32: 0, 64: 0, 128: 0}  # statistics are padded to 32 queries
    for length in sizes:
        x = [Tensor(None, length * H * DIM, BF16, requires_grad=True) for _ in range(3)]
        shape = Shape(1, length, H, H, DIM, DIM)
        planned = lambda t, q, k, v, shape=shape: attend(t, q, k, v, shape, Positions(), kernel, Attention(H, H, DIM))  # noqa: E731
        sizes[length] = of_tape(planned, *x).kept
    once, twice, four_times = sizes.values()

    assert four_times - twice == 2 * (twice - once)


def test_flash_attention_2_takes_half_types_only():
    """The package's kernel is given the autocast type where the stream is fp32; PyTorch's fp32 falls back to the efficient one."""
    x = [Tensor(None, S * H * DIM, FP32, requires_grad=True) for _ in range(3)]
    spec, shape = Attention(H, H, DIM), Shape(1, S, H, H, DIM, DIM)
    package = of_tape(lambda t, q, k, v: attend(t, q, k, v, shape, Positions(), "flash_attention_2", spec), *x)
    own = of_tape(lambda t, q, k, v: attend(t, q, k, v, shape, Positions(), "flash", spec), *x)

    assert package.kept == 2 * S * H * DIM * 4 + 4 * S * H + 16
    assert own.kept == 4 * S * H * DIM + 4 * 32 * H
