"""Module tables of the text families, against what transformers instantiates."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from planner.architecture import build_spec, family_of
from planner.errors import InvalidConfigError, QplanError
from tests.architecture.meta import Checkpoint, checkpoints, compare_with_transformers, shallow, stored_parameters

ARCHITECTURES = {
    "bloom": "BloomForCausalLM",
    "cohere": "CohereForCausalLM",
    "cohere2": "Cohere2ForCausalLM",
    "falcon": "FalconForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_bigcode": "GPTBigCodeForCausalLM",
    "gpt_neo": "GPTNeoForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "gptj": "GPTJForCausalLM",
    "granite": "GraniteForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "llama": "LlamaForCausalLM",
    "minimax_m2": "MiniMaxM2ForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "mpt": "MptForCausalLM",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "opt": "OPTForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "phimoe": "PhimoeForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
}
CHECKPOINTS = checkpoints(ARCHITECTURES)

# Only what a family cannot do without: everything else takes the class's default. The heads go with each class's key heads.
SMALL = {
    "hidden_size": 1024,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "vocab_size": 262_208,
}
OTHER_NAMES = {
    "bloom": {"hidden_size": 64, "n_layer": 4, "n_head": 8, "vocab_size": 128},
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 8, "vocab_size": 60_000},
    "gpt_bigcode": {"n_embd": 64, "n_layer": 4, "n_head": 8, "vocab_size": 60_000},
    "gpt_neo": {"hidden_size": 64, "num_layers": 24, "num_heads": 8, "vocab_size": 60_000},
    "gptj": {"n_embd": 64, "n_layer": 4, "n_head": 8, "vocab_size": 60_000},
    "mpt": {"d_model": 64, "n_layers": 4, "n_heads": 8, "vocab_size": 128},
    "opt": {**SMALL, "ffn_dim": 1536},
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}

# What published files do not cover, one field or two at a time.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("bloom", {"n_embed": 128}),
    ("bloom", {"tie_word_embeddings": False}),
    ("cohere", {"use_qk_norm": True, "num_key_value_heads": 8}),
    ("cohere2", {"head_dim": 64}),
    ("cohere2", {"attention_bias": True, "sliding_window_pattern": 2}),
    ("falcon", {"multi_query": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 8, "bias": True}),
    ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"parallel_attn": False, "alibi": True, "ffn_hidden_size": 96}),
    ("gemma", {"head_dim": 32, "num_key_value_heads": 1, "attention_bias": True}),
    ("gemma2", {"tie_word_embeddings": False}),
    ("gemma3_text", {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}),
    ("gemma3_text", {"num_hidden_layers": 6, "sliding_window_pattern": 3}),
    ("gemma3_text", {"layer_types": ["full_attention"] * 4}),
    ("glm", {"partial_rotary_factor": 0.25, "attention_bias": False}),
    ("glm4", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}),
    ("gpt2", {"n_inner": 96, "n_positions": 77, "tie_word_embeddings": False}),
    ("gpt_bigcode", {"multi_query": False}),
    ("gpt_neo", {"num_layers": 3, "attention_types": [[["local"], 1], [["global"], 2]]}),
    ("gpt_neox", {"rotary_pct": 1.0, "attention_bias": False}),
    ("gpt_neox", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}),
    ("gpt_oss", {"attention_bias": False, "layer_types": ["full_attention"] * 4}),
    ("gptj", {"rotary_dim": 0, "tie_word_embeddings": True}),
    ("granite", {"mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 48, "num_key_value_heads": 8}),
    ("llama", {"num_key_value_heads": None, "head_dim": None, "tie_word_embeddings": True}),
    ("llama", {"rope_scaling": LLAMA3}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}, "partial_rotary_factor": 0.5}),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}),
    ("llama", {"partial_rotary_factor": 0.5}),
    ("llama", {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e4}}),
    ("minimax_m2", {"rotary_dim": 64}),
    ("minimax_m2", {"head_dim": 64, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    ("mistral", {"head_dim": 160}),
    ("mixtral", {"num_experts": 6}),
    ("olmo", {"attention_bias": True}),
    ("olmo2", {"num_key_value_heads": 8}),
    ("olmo3", {"layer_types": ["full_attention"] * 4}),
    ("olmoe", {"num_key_value_heads": 8}),
    ("opt", {"word_embed_proj_dim": 256, "do_layer_norm_before": False}),
    ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    ("opt", {"_remove_final_layer_norm": True}),
    ("phi", {"qk_layernorm": True, "num_key_value_heads": 8, "tie_word_embeddings": True}),
    ("phi3", {"rope_scaling": LONGROPE}),
    ("phi3", {"partial_rotary_factor": 0.75, "num_key_value_heads": 8}),
    ("phimoe", {"lm_head_bias": True, "attention_bias": True, "tie_word_embeddings": True}),
    ("qwen2", {"rope_scaling": YARN, "use_sliding_window": True}),
    ("qwen2_moe", {"decoder_sparse_step": 2, "qkv_bias": False}),
    ("qwen3", {"attention_bias": True, "head_dim": 64}),
    ("qwen3_moe", {"mlp_only_layers": [0, 3], "head_dim": 128}),
    ("qwen3_moe", {"num_experts": 0}),
    ("smollm3", {"num_key_value_heads": None, "no_rope_layer_interval": 2}),
    ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True, "num_key_value_heads": 8}),
    ("stablelm", {"head_dim": 64}),
    ("stablelm", {"use_qkv_bias": True, "partial_rotary_factor": 1.0}),
    ("starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
]

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"num_attention_heads": 30}, "hidden_size"),
    ("llama", {"num_key_value_heads": 5}, "num_attention_heads"),
    ("llama", {"num_hidden_layers": 0}, "num_hidden_layers"),
    ("llama", {"hidden_size": -4096}, "hidden_size"),
    ("llama", {"vocab_size": 10**18}, "vocab_size"),
    ("llama", {"intermediate_size": "wide"}, "intermediate_size"),
    ("llama", {"hidden_size": float("nan")}, "hidden_size"),
    ("llama", {"head_dim": 65}, "head_dim"),
    ("llama", {"rope_scaling": {"rope_type": "spiral"}}, "rope_scaling.rope_type"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling"),
    ("llama", {"attention_bias": 1}, "attention_bias"),
    ("mistral", {"hidden_size": 16}, "hidden_size"),
    ("gemma2", {"layer_types": ["full_attention"] * 3}, "layer_types"),
    ("gemma3_text", {"layer_types": ["diagonal_attention"] * 4}, "layer_types"),
    ("gpt_neo", {"attention_types": [[["global", "local"], 7]]}, "attention_types"),
    ("gpt_neo", {"attention_types": [[["sideways"], 24]]}, "attention_types"),
    ("gpt_neo", {"attention_types": {"global": 24}}, "attention_types"),
    ("gpt_neox", {"rotary_pct": -1.0}, "partial_rotary_factor"),
    ("gpt2", {"n_head": 7}, "n_embd"),
    ("phi3", {"rope_scaling": {**LONGROPE, "short_factor": [1.0] * 3}}, "short_factor"),
    ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.type"),
    ("qwen3_moe", {"mlp_only_layers": "all"}, "mlp_only_layers"),
    ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ("stablelm", {"hidden_size": 1000}, "hidden_size"),
]


def small(model_type: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A config of a family with nothing but its sizes, and these changes."""
    return {"model_type": model_type, **OTHER_NAMES.get(model_type, SMALL), **(changes or {})}


def named(checkpoint: Checkpoint) -> str:
    """The id of a test."""
    return checkpoint.id


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=named)
def test_table_is_what_transformers_builds(checkpoint: Checkpoint) -> None:
    """
    Each bundled checkpoint, cut to six layers, has the modules and buffers of the real model.
    """
    compare_with_transformers(shallow(checkpoint.config, 6), checkpoint.architectures)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=named)
def test_table_is_what_transformers_builds_at_full_depth(checkpoint: Checkpoint) -> None:
    """
    Each bundled checkpoint has the modules and buffers of the real model in every layer.
    """
    compare_with_transformers(checkpoint.config, checkpoint.architectures)


@pytest.mark.parametrize("checkpoint", [c for c in CHECKPOINTS if c.published_parameters], ids=named)
def test_parameters_are_what_was_published(checkpoint: Checkpoint) -> None:
    """
    The table counts the published number of parameters, but for what the file says that number counts besides.
    """
    assert checkpoint.published_parameters == stored_parameters(checkpoint)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_missing_fields_take_the_defaults_of_the_real_class(model_type: str) -> None:
    """
    A config with nothing but sizes gives the model that transformers builds from it.
    """
    compare_with_transformers(small(model_type), [ARCHITECTURES[model_type]])


@pytest.mark.parametrize(("model_type", "changes"), VARIANTS)
def test_unpublished_variants_are_what_transformers_builds(model_type: str, changes: dict[str, Any]) -> None:
    """
    Fields that no bundled checkpoint sets have the effect that they have in the real class.
    """
    compare_with_transformers(small(model_type, changes), [ARCHITECTURES[model_type]])


@pytest.mark.parametrize(("model_type", "changes", "field"), REFUSED)
def test_values_that_no_model_can_have_are_refused_by_name(model_type: str, changes: dict[str, Any], field: str) -> None:
    """
    A value that does not make a model is refused in a sentence that names its field.
    """
    with pytest.raises(InvalidConfigError, match=field):
        build_spec(small(model_type, changes), id="hostile")


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_hostile_values_never_raise_anything_else(model_type: str) -> None:
    """
    Whatever stands in a field, a family gives a table or an error of ours.
    """
    facts = next((c.config for c in CHECKPOINTS if c.config["model_type"] == model_type), {})
    whole = {**facts, **small(model_type)}
    for field in whole:
        for value in (None, -1, 0, 10**18, float("nan"), float("inf"), "", [], {}, [[]], True, {"a": {"b": [1]}}):
            with contextlib.suppress(QplanError):
                build_spec({**whole, field: value}, id="hostile")


def test_cross_attention_is_refused() -> None:
    """
    A GPT-2 with cross-attention is the half of another model.
    """
    with pytest.raises(QplanError, match="add_cross_attention"):
        build_spec(small("gpt2", {"add_cross_attention": True}), id="half")


def test_every_family_here_is_declared() -> None:
    """
    The registry leads from each model_type to its declaration.
    """
    assert all(family_of(model_type).table for model_type in ARCHITECTURES)
