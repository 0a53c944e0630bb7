"""Module tables of the multimodal, latent-attention, hybrid and state-space families, against what transformers instantiates."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from typing import Any

import pytest

from planner.architecture import build_spec, family_of
from planner.errors import InvalidConfigError, QplanError, UnsupportedModelError
from tests.architecture.meta import Checkpoint, checkpoints, compare_with_transformers, stored_parameters

COMPOSITE = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3n": "Gemma3nForConditionalGeneration",
    "gemma4": "Gemma4ForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "mistral3": "Mistral3ForConditionalGeneration",
    "mllama": "MllamaForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
}
# The text decoders of those, which a user can load alone, and whose classes have a default for every size.
TEXT = {
    "gemma3n_text": "Gemma3nForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
}
FLAT = {
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v32": "DeepseekV32ForCausalLM",
    "deepseek_v4": "DeepseekV4ForCausalLM",
    "falcon_mamba": "FalconMambaForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "glm_moe_dsa": "GlmMoeDsaForCausalLM",
    "jamba": "JambaForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "mamba": "MambaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
}
ARCHITECTURES = {**COMPOSITE, **TEXT, **FLAT}
# Checkpoints that say a model_type of their own, which transformers serves with another family's classes.
SERVED = {"kimi_k2": "deepseek_v3"}
CHECKPOINTS = checkpoints([*ARCHITECTURES, *SERVED])

# Only what a flat family cannot do without: everything else takes the class's default.
SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 1536,
    "num_hidden_layers": 9,
    "num_attention_heads": 128,
    "vocab_size": 512,
}
OTHER_SIZES: dict[str, dict[str, Any]] = {
    "deepseek_v4": {name: size for name, size in SIZES.items() if name != "intermediate_size"},
    "falcon_mamba": {"hidden_size": 100, "num_hidden_layers": 3, "vocab_size": 512},
    "mamba": {"hidden_size": 100, "num_hidden_layers": 3, "vocab_size": 512},
    "mamba2": {"hidden_size": 4096, "num_hidden_layers": 3, "vocab_size": 512},
    "nemotron_h": {"hidden_size": 2048, "hybrid_override_pattern": "M*E-M", "vocab_size": 512},
    **{model_type: {} for model_type in (*COMPOSITE, *TEXT)},
}

SLIDING, FULL = "sliding_attention", "full_attention"
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 512}

# What published files do not cover, one field or two at a time.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("deepseek_v2", {"q_lora_rank": None, "attention_bias": True, "mlp_bias": True}),
    ("deepseek_v2", {"num_key_value_heads": None, "first_k_dense_replace": 99, "tie_word_embeddings": True}),
    ("deepseek_v3", {"q_lora_rank": None, "n_shared_experts": 3, "num_local_experts": 6}),
    ("deepseek_v32", {"mlp_layer_types": ["sparse", "dense"] * 4 + ["dense"]}),
    ("deepseek_v32", {"num_experts": 6, "attention_bias": True}),
    (
        "deepseek_v4",
        {"compress_rate_csa": 8, "compress_rates": {"heavily_compressed_attention": 64, "compressed_sparse_attention": 2}},
    ),
    ("deepseek_v4", {"layer_types": [SLIDING] * 8 + ["compressed_sparse_attention"], "num_hash_layers": 0}),
    ("deepseek_v4", {"mlp_layer_types": ["moe"] * 9, "partial_rotary_factor": 0.25, "mlp_bias": True, "hc_mult": 2}),
    ("falcon_mamba", {"time_step_rank": 7, "use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False}),
    ("gemma3", {"text_config": {**TINY, "sliding_window_pattern": 3, "attention_bias": True}}),
    ("gemma3", {"vision_config": {"vision_use_head": False, "image_size": 99}, "tie_word_embeddings": False}),
    ("gemma3n_text", {**TINY, "intermediate_size": [96, 64, 96, 96, 64, 96], "num_kv_shared_layers": 1, "altup_num_inputs": 2}),
    ("gemma3n_text", {"layer_types": [SLIDING] * 35, "num_kv_shared_layers": 0, "attention_bias": True}),
    (
        "gemma4",
        {"vision_config": {"standardize": True, "use_clipped_linears": True}, "audio_config": {"use_clipped_linears": False}},
    ),
    ("gemma4", {"vision_config": {"head_dim": 36, "num_key_value_heads": 4}, "tie_word_embeddings": False}),
    ("gemma4_text", {**TINY, "per_layer_config": {"5": {"head_dim": 32, "num_key_value_heads": 2}}}),
    ("gemma4_text", {**TINY, "layer_types": [FULL, SLIDING] * 3, "attention_k_eq_v": True, "num_global_key_value_heads": 1}),
    ("gemma4_text", {**TINY, "num_global_key_value_heads": 1, "num_hidden_layers": 14, "num_kv_shared_layers": 3}),
    ("glm4_moe", {"use_qk_norm": True, "attention_bias": True, "first_k_dense_replace": 0, "partial_rotary_factor": 1.0}),
    ("glm_moe_dsa", {"index_topk_freq": 3, "index_skip_topk_offset": 3}),
    ("glm_moe_dsa", {"index_topk_pattern": "FSSFSSFSS", "first_k_dense_replace": 1}),
    ("glm_moe_dsa", {"indexer_types": ["full"] + ["shared"] * 8}),
    ("jamba", {"num_experts": 1, "attn_layer_period": 3, "attn_layer_offset": 0}),
    ("jamba", {"mamba_dt_rank": "auto", "mamba_conv_bias": False, "mamba_proj_bias": True, "mamba_expand": 3}),
    ("lfm2", {"layer_types": ["conv"] * 8 + [FULL], "conv_bias": True, "tie_embedding": False}),
    ("lfm2", {"block_ff_dim": 1000, "block_auto_adjust_ff_dim": False}),
    ("lfm2", {"block_ffn_dim_multiplier": 1.3, "block_multiple_of": 100}),
    ("llama4", {"text_config": {**TINY, "tie_word_embeddings": True, "moe_layers": [1, 4], "attention_bias": True}}),
    ("llama4", {"vision_config": {"image_size": 100, "hidden_size": 144, "projector_input_dim": 32}}),
    ("llama4_text", {**TINY, "interleave_moe_layer_step": 3, "head_dim": 24}),
    ("mamba", {"expand": 3, "state_size": 5, "conv_kernel": 2, "use_bias": True}),
    ("mamba2", {"num_heads": 64, "head_dim": 128, "n_groups": 4, "use_bias": True, "use_conv_bias": False}),
    ("ministral3", {"head_dim": 64, "tie_word_embeddings": True}),
    ("mistral3", {"text_config": {**TINY, "model_type": "ministral3"}, "vision_feature_layer": [-1, -2]}),
    ("mistral3", {"multimodal_projector_bias": True, "spatial_merge_size": 3, "tie_word_embeddings": False}),
    ("mllama", {"text_config": {**TINY, "vocab_size": 128_256, "cross_attention_layers": [0, 5]}, "tie_word_embeddings": True}),
    ("mllama", {"vision_config": {"supported_aspect_ratios": [[1, 1], [1, 2]], "max_num_tiles": 2, "num_global_layers": 3}}),
    ("nemotron_h", {"layers_block_type": ["mamba", "attention", "mlp", "moe"], "mlp_bias": True, "moe_latent_size": 64}),
    ("nemotron_h", {"mamba_n_groups": 2, "mamba_d_conv": 3, "mamba_conv_bias": False, "use_bias": True, "num_hidden_layers": 99}),
    ("qwen2_5_vl", {"text_config": {**TINY, "tie_word_embeddings": True}, "vision_config": {"hidden_size": 128, "depth": 2}}),
    ("qwen2_vl", {"text_config": TINY, "vision_config": {"mlp_ratio": 2, "temporal_patch_size": 1}}),
    ("qwen2_vl", {**TINY, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}, "tie_word_embeddings": True}),
    ("qwen3_5", {"text_config": {**TINY, "full_attention_interval": 2}, "tie_word_embeddings": True}),
    ("qwen3_5_moe_text", {"num_hidden_layers": 4, "layer_types": [FULL] * 4, "attention_bias": True}),
    ("qwen3_5_text", {"num_hidden_layers": 4, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    ("qwen3_next", {"mlp_only_layers": [0], "decoder_sparse_step": 2, "linear_num_value_heads": 16}),
    ("qwen3_next", {"num_experts": 0, "layer_types": ["linear_attention"] * 9}),
    (
        "qwen3_vl",
        {
            "text_config": {**TINY, "num_key_value_heads": 2, "attention_bias": True},
            "vision_config": {"deepstack_visual_indexes": [3]},
        },
    ),
    ("qwen3_vl_moe", {"text_config": {**TINY, "num_key_value_heads": 4, "mlp_only_layers": [1], "decoder_sparse_step": 2}}),
    ("qwen3_vl_moe", {"text_config": {"num_local_experts": 6}, "vision_config": {"num_position_embeddings": 16}}),
]

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("deepseek_v2", {"hidden_size": 1000}, "hidden_size"),
    ("deepseek_v3", {"kv_lora_rank": 0}, "kv_lora_rank"),
    ("deepseek_v32", {"mlp_layer_types": ["sparse"]}, "mlp_layer_types"),
    ("deepseek_v4", {"o_groups": 7}, "o_groups"),
    ("deepseek_v4", {"compress_ratios": [0, 4]}, "compress_ratios"),
    ("deepseek_v4", {"compress_ratios": [5] * 9}, "compress_ratios"),
    ("deepseek_v4", {"partial_rotary_factor": float("nan")}, "partial_rotary_factor"),
    ("gemma3", {"vision_config": {"num_attention_heads": 7}}, "vision_config.hidden_size"),
    ("gemma3n", {"text_config": {"intermediate_size": [8, 8]}}, "text_config.intermediate_size"),
    ("gemma3n", {"text_config": {"num_kv_shared_layers": 33}}, "num_kv_shared_layers"),
    ("gemma3n", {"audio_config": {"sscp_conv_channel_size": [8]}}, "sscp_conv_channel_size"),
    ("gemma3n", {"audio_config": {"sscp_conv_kernel_size": [[3, 3], [3]]}}, "sscp_conv_kernel_size"),
    ("gemma3n", {"text_config": {"altup_num_inputs": 10**7}}, "altup_num_inputs"),
    ("gemma4", {"text_config": {"num_kv_shared_layers": 29}}, "num_kv_shared_layers"),
    ("gemma4", {"text_config": {"enable_moe_block": True}}, "num_experts"),
    ("gemma4", {"audio_config": {"subsampling_conv_channels": 8}}, "subsampling_conv_channels"),
    ("glm_moe_dsa", {"index_topk_pattern": "FXSFSSFSS"}, "index_topk_pattern"),
    ("jamba", {"attn_layer_offset": 8}, "attn_layer_offset"),
    ("lfm2", {"block_ffn_dim_multiplier": float("inf")}, "block_ffn_dim_multiplier"),
    ("llama4", {"text_config": {"moe_layers": "odd"}}, "text_config.moe_layers"),
    ("mamba", {"time_step_rank": "most"}, "time_step_rank"),
    ("mamba2", {"num_heads": 100}, "num_heads"),
    ("mllama", {"text_config": {"num_attention_heads": 7}}, "text_config.hidden_size"),
    ("nemotron_h", {"hybrid_override_pattern": "MX"}, "hybrid_override_pattern"),
    ("nemotron_h", {"hybrid_override_pattern": "M" * 10_001}, "hybrid_override_pattern"),
    ("qwen2_vl", {"vision_config": {"embed_dim": 1281}}, "vision_config.embed_dim"),
    ("qwen3_5", {"text_config": {"layer_types": [FULL]}}, "text_config.layer_types"),
    ("qwen3_next", {"layer_types": ["diagonal_attention"] * 9}, "layer_types"),
    ("qwen3_vl", {"vision_config": []}, "vision_config"),
]


def small(model_type: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A config of a family with nothing but its sizes, and these changes."""
    return {"model_type": model_type, **OTHER_SIZES.get(model_type, SIZES), **(changes or {})}


def named(checkpoint: Checkpoint) -> str:
    """The id of a test."""
    return checkpoint.id


def compare(config: dict[str, Any], architecture: str) -> None:
    """Compare with transformers, which takes Gemma 3n's image tower from timm."""
    if config["model_type"] == "gemma3n" and not all(map(importlib.util.find_spec, ("timm", "PIL"))):
        pytest.skip("transformers builds the image tower of Gemma 3n only with timm and pillow")
    compare_with_transformers(config, [architecture])


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=named)
def test_table_is_what_transformers_builds(checkpoint: Checkpoint) -> None:
    """
    Each bundled checkpoint has the modules and buffers of the real model in every layer.
    """
    model_type = checkpoint.config["model_type"]
    compare({**checkpoint.config, "model_type": SERVED.get(model_type, model_type)}, checkpoint.architectures[0])


@pytest.mark.parametrize("checkpoint", [c for c in CHECKPOINTS if c.config["model_type"] in SERVED], ids=named)
def test_other_names_of_a_family_have_its_table(checkpoint: Checkpoint) -> None:
    """
    A model_type that transformers serves with another family's classes has that family's modules.
    """
    served = {**checkpoint.config, "model_type": SERVED[checkpoint.config["model_type"]]}

    assert build_spec(served, id="served").modules == build_spec(checkpoint.config, id="own").modules


@pytest.mark.parametrize("checkpoint", [c for c in CHECKPOINTS if c.published_parameters], ids=named)
def test_parameters_are_what_was_published(checkpoint: Checkpoint) -> None:
    """
    The table counts the published number of parameters, but for what the file says that number counts besides.
    """
    assert checkpoint.published_parameters == stored_parameters(checkpoint)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_missing_fields_take_the_defaults_of_the_real_class(model_type: str) -> None:
    """
    A config with nothing but sizes, or with nothing at all where its class has them, gives the model that transformers builds.
    """
    compare(small(model_type), ARCHITECTURES[model_type])


@pytest.mark.parametrize(("model_type", "changes"), VARIANTS)
def test_unpublished_variants_are_what_transformers_builds(model_type: str, changes: dict[str, Any]) -> None:
    """
    Fields that no bundled checkpoint sets have the effect that they have in the real class.
    """
    compare(small(model_type, changes), ARCHITECTURES[model_type])


@pytest.mark.parametrize(("model_type", "changes", "field"), REFUSED)
def test_values_that_no_model_can_have_are_refused_by_name(model_type: str, changes: dict[str, Any], field: str) -> None:
    """
    A value that does not make a model is refused in a sentence that names its field.
    """
    with pytest.raises(InvalidConfigError, match=field):
        build_spec(small(model_type, changes), id="hostile")


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("gemma3n", {"vision_config": {"architecture": "resnet50"}}),
        ("gemma3n", {"vision_config": {"model_args": {"width": 2}}}),
        ("mistral3", {"text_config": {"model_type": "mamba"}}),
    ],
)
def test_parts_of_other_families_are_refused(model_type: str, changes: dict[str, Any]) -> None:
    """
    A composite whose parts are not those of its published models is refused, not guessed.
    """
    with pytest.raises(UnsupportedModelError, match=next(iter(changes))):
        build_spec(small(model_type, changes), id="chimera")


@pytest.mark.parametrize("model_type", [*ARCHITECTURES, *SERVED])
def test_hostile_values_never_raise_anything_else(model_type: str) -> None:
    """
    Whatever stands in a field, at the top or in a section, a family gives a table or an error of ours.
    """
    whole = next((c.config for c in CHECKPOINTS if c.config["model_type"] == model_type), small(model_type))
    for section in ((), *((name,) for name, value in whole.items() if isinstance(value, dict))):
        for field in whole if not section else whole[section[0]]:
            for value in (None, -1, 0, 10**18, float("nan"), float("inf"), "", [], {}, [[]], True, {"a": {"b": [1]}}):
                config = copy.deepcopy(whole)
                (config[section[0]] if section else config)[field] = value
                with contextlib.suppress(QplanError):
                    build_spec(config, id="hostile")


def test_every_family_here_is_declared() -> None:
    """
    The registry leads from each model_type to its declaration.
    """
    assert all(family_of(model_type).table for model_type in (*ARCHITECTURES, *SERVED))
