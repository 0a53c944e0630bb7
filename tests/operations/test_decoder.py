"""Whole layers against transformers' own on the CPU, with eager attention."""

from __future__ import annotations

from typing import Any

import pytest

from planner.architecture import build_spec
from planner.architecture.decoder import Layer
from planner.dtypes import DType
from planner.engines.analytic import decoder_of
from planner.operations.attention import Positions
from planner.operations.decoder import Batch, Weights, decoder_layer
from planner.operations.elementwise import scale
from planner.operations.linear import Linear
from planner.operations.norm import Norm
from planner.tensors import Tensor
from tests.live import TORCH, Figures, leaf, of_tape, of_torch, pair

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BF16, FP32 = DType.BF16, DType.FP32
S, WIDTH, HEADS = 12, 32, 4
SIZES = {
    "vocab_size": 64, "hidden_size": WIDTH, "intermediate_size": 80, "num_hidden_layers": 1, "num_attention_heads": HEADS,
    "num_key_value_heads": 2, "head_dim": WIDTH // HEADS, "max_position_embeddings": 64, "tie_word_embeddings": False,
    "pad_token_id": 0,
}  # fmt: skip
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "olmo2", "gemma", "phi3", "glm", "granite", "starcoder2", "cohere", "phi", "stablelm"]


def double(module: torch.nn.Module, layer: Layer) -> Weights:
    """The modules of a real layer on the tape, by their paths."""
    linears, norms = {}, {}
    kinds = {spec.name: spec for spec in (*layer.norms, layer.attention.q_norm, layer.attention.k_norm) if spec is not None}
    for name, part in module.named_modules():
        bias = getattr(part, "bias", None)
        added = leaf(bias) if bias is not None else None
        if isinstance(part, torch.nn.Linear):
            linears[name] = Linear(part.in_features, part.out_features, leaf(part.weight), added)
        elif name in kinds:
            norms[name] = Norm(kinds[name].kind, kinds[name].width or part.weight.numel(), leaf(part.weight), added)
    return Weights(linears, norms, {})


def figures(family: str, batch: int, dtype: DType, *, trained: bool) -> tuple[Figures, Figures]:
    """Of the real layer and of its double."""
    config = transformers.AutoConfig.for_model(family, **SIZES)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).to(TORCH[dtype]).requires_grad_(trained)
    module = model.model.layers[0].train()
    given: dict[str, Any] = {"model_type": family, **config.to_dict()}
    layer = decoder_of(build_spec(given, id=family)).layers[0]
    weights = double(module, layer)
    x, ours = pair((batch, S, WIDTH), dtype)
    ids = torch.arange(S)[None]
    cos, sin = model.model.rotary_emb(x, ids)
    mask = torch.zeros(batch, 1, S, S, dtype=TORCH[dtype])
    positions = Positions(
        Tensor(None, cos.numel(), dtype), Tensor(None, sin.numel(), dtype), Tensor(None, mask.numel(), dtype)
    )

    def real(x: torch.Tensor) -> torch.Tensor:
        x = x * 2.0
        return module(x, attention_mask=mask, position_ids=ids, position_embeddings=(cos, sin)) * 2.0

    def planned(t, x: Tensor) -> Tensor:
        x = scale(t, x)
        return scale(t, decoder_layer(t, x, layer, weights, Batch(batch, S, "eager", True), positions))

    return of_torch(real, x), of_tape(planned, ours)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_layer(family, batch, dtype, trained):
    """Forward, kept, backward and left bytes are the modeling code's."""
    if family in ("starcoder2", "phi", "stablelm") and dtype is BF16:
        pytest.skip("on the CPU the statistics of nn.LayerNorm are in the parameters' type; CUDA has them in fp32")
    expected, found = figures(family, batch, dtype, trained=trained)

    assert expected == found
