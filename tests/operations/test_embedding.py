"""Embeddings against real torch and PEFT modules on the CPU."""

from __future__ import annotations

import pytest

from planner.dtypes import DType
from planner.operations.embedding import adapted_lookup, lookup
from planner.operations.linear import Lora
from planner.tensors import Tensor
from tests.live import TORCH, leaf, of_tape, of_torch

torch = pytest.importorskip("torch")

BF16, FP32 = DType.BF16, DType.FP32
ROWS, VOCABULARY, WIDTH, RANK = 24, 50, 16, 4


def indices() -> torch.Tensor:
    return torch.arange(ROWS).reshape(2, ROWS // 2)


@pytest.mark.parametrize("trained", [True, False])
def test_lookup(trained):
    """A trained table gets a gradient of its own size; nothing else is saved."""
    module = torch.nn.Embedding(VOCABULARY, WIDTH, dtype=torch.bfloat16).requires_grad_(trained)
    table = leaf(module.weight)
    given = indices()

    assert of_torch(module, given) == of_tape(lambda t, x: lookup(t, table, ROWS, WIDTH), Tensor(None, ROWS, DType.INT64))


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize(("base", "adapter"), [(FP32, FP32), (BF16, FP32), (BF16, BF16)])
def test_adapted_lookup(base, adapter, scaled):
    """PEFT's Embedding around nn.Embedding, and around Gemma's, which multiplies its output."""
    layers = pytest.importorskip("peft.tuners.lora.layer")
    peft = pytest.importorskip("peft")
    gemma = pytest.importorskip("transformers.models.gemma3.modeling_gemma3")
    inner = (
        gemma.Gemma3TextScaledWordEmbedding(VOCABULARY, WIDTH, padding_idx=0, embed_scale=4.0)
        if scaled
        else torch.nn.Embedding(VOCABULARY, WIDTH)
    )
    inner = inner.to(TORCH[base])
    inner.weight.requires_grad_(False)
    module = layers.Embedding(inner, "default", peft.LoraConfig(r=RANK, lora_alpha=8), r=RANK, lora_alpha=8)
    a, b = module.lora_embedding_A["default"], module.lora_embedding_B["default"]
    a.data, b.data = a.data.to(TORCH[adapter]), b.data.to(TORCH[adapter])
    lora = Lora(RANK, leaf(a), leaf(b))
    table = leaf(inner.weight)
    given = indices()

    assert of_torch(module, given) == of_tape(
        lambda t, x: adapted_lookup(t, table, ROWS, WIDTH, lora, scaled=scaled), Tensor(None, ROWS, DType.INT64)
    )
