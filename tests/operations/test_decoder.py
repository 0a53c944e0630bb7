"""Whole decoder layers against transformers' own, run on the CPU with every weight trained."""

from __future__ import annotations

from typing import Any

import pytest

from planner.architecture import Fields, build_spec, family_of
from planner.architecture.decoder import Layer
from planner.dtypes import DType
from planner.operations.attention import Positions
from planner.operations.decoder import Batch, Weights, decoder_layer
from planner.operations.linear import Linear
from planner.operations.norm import Norm
from planner.tensors import Tensor
from tests.live import TORCH, leaf, of_tape, of_torch, pair

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, S = 2, 8
TINY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 64, "pad_token_id": 0, "max_position_embeddings": 64,
}  # fmt: skip
PARTLY = {"partial_rotary_factor": 0.5}
FAMILIES: list[tuple[str, dict[str, Any], DType]] = [
    ("llama", {}, DType.BF16),
    ("qwen2", {}, DType.BF16),
    ("qwen3", {"head_dim": 16}, DType.BF16),
    ("gemma", {"head_dim": 16}, DType.BF16),
    ("gemma2", {"head_dim": 16, "layer_types": ["sliding_attention"]}, DType.BF16),
    ("gemma3_text", {"head_dim": 16, "layer_types": ["full_attention"]}, DType.BF16),
    ("phi", {"hidden_act": "gelu_new", **PARTLY}, DType.FP32),
    ("phi", {"hidden_act": "gelu_new", "qk_layernorm": True, **PARTLY}, DType.FP32),
    ("phi3", {}, DType.BF16),
    ("phi3", PARTLY, DType.BF16),
    ("olmo", {}, DType.BF16),
    ("olmo2", {}, DType.BF16),
    ("olmo3", {"layer_types": ["sliding_attention"]}, DType.BF16),
    ("granite", {}, DType.BF16),
    ("smollm3", {"no_rope_layers": [0]}, DType.BF16),
    ("cohere", {}, DType.BF16),
    ("cohere", {"use_qk_norm": True}, DType.BF16),
    ("cohere2", {"layer_types": ["full_attention"]}, DType.BF16),
    ("cohere2", {"layer_types": ["sliding_attention"]}, DType.BF16),
    ("glm", {"head_dim": 8, "attention_bias": True, **PARTLY}, DType.BF16),
    ("glm4", {"head_dim": 8, "attention_bias": True, **PARTLY}, DType.BF16),
    ("stablelm", PARTLY, DType.FP32),
    ("stablelm", {"use_parallel_residual": True, **PARTLY}, DType.FP32),
    ("starcoder2", {"use_bias": True}, DType.FP32),
    ("ministral3", {"head_dim": 8}, DType.BF16),
]


def weights_of(module: Any, layer: Layer) -> Weights:
    """A real layer's parameters, as the tape's layer looks for them."""
    linears = {
        name: Linear(m.in_features, m.out_features, leaf(m.weight), None if m.bias is None else leaf(m.bias))
        for name, m in module.named_modules()
        if isinstance(m, torch.nn.Linear)
    }
    norms = {}
    for spec in (*layer.norms, layer.attention.q_norm, layer.attention.k_norm):
        if spec is not None and spec.name:
            norm = module.get_submodule(spec.name)
            bias = getattr(norm, "bias", None)
            norms[spec.name] = Norm(spec.kind, spec.width, leaf(norm.weight), None if bias is None else leaf(bias))
    return Weights(linears, norms)


@pytest.mark.parametrize(("model_type", "fields", "dtype"), FAMILIES)
def test_a_layer_allocates_and_keeps_what_the_real_one_does(model_type: str, fields: dict[str, Any], dtype: DType):
    """The most alive in forward, what is kept for backward, the most alive in backward, and what is left agree to the byte."""
    config = {"model_type": model_type, **TINY, **fields}
    real_config = transformers.AutoConfig.for_model(model_type, **TINY, **fields, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(real_config, dtype=TORCH[dtype]).train()
    module, rotary = model.model.layers[0], model.model.rotary_emb
    build_spec(config, id=model_type)
    declared = family_of(model_type).decoder
    assert declared is not None
    decoder = declared(Fields(config))
    layer = decoder.layers[0]
    weights = weights_of(module, layer)

    hidden, x = pair((B, S, 32), dtype)
    ids = torch.arange(S)[None]
    kinds = (real_config.layer_types[0],) if decoder.rotary_tables > 1 or hasattr(rotary, "layer_types") else ()
    cos, sin = rotary(hidden.detach(), ids, *kinds)
    mask = torch.zeros(B, 1, S, S, dtype=TORCH[dtype])
    tables = (Tensor(None, t.numel(), DType.FP32 if decoder.rotary_in_fp32 else dtype) for t in (cos, sin))
    positions = Positions(*tables, Tensor(None, mask.numel(), dtype), Tensor(None, S, DType.INT64))

    expected = of_torch(
        lambda given: module(given, attention_mask=mask, position_embeddings=(cos, sin), position_ids=ids, use_cache=False), hidden
    )

    assert expected == of_tape(lambda t, given: decoder_layer(t, given, layer, weights, Batch(B, S, "eager"), positions), x)
