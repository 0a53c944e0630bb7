"""DeepSeek V2 to V3.2, Kimi K2 and GLM-5: multi-head latent attention, dense layers first and then experts."""

from __future__ import annotations

from collections.abc import Mapping

from planner.architecture.blocks import Dims, experts, gated_mlp, head, norms, read_dims, rotary, router
from planner.architecture.decoder import Decoder, Latent, Moe, NormSpec
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.routed import shared_expert, with_experts
from planner.architecture.sections import kinds_of, where
from planner.architecture.structures import attention_dropout, llama_like
from planner.architecture.table import Table
from planner.value import Value

_DSA = "an indexer that picks the keys of latent attention"


class Variant(Value):
    """
    What differs between the models of this layout.

    Attributes:
        defaults: Values of the config class for fields that a file may leave out.
        corrected: Whether the router has a buffer that balances the experts.
        indexed: Whether attention has an indexer, which goes with queries that are always low-rank.
        mlp_bias: Whether the class reads `mlp_bias`.
        strict: Whether it refuses heads that do not divide the residual stream.
    """

    defaults: Mapping[str, int]
    corrected: bool = True
    indexed: bool = False
    mlp_bias: bool = False
    strict: bool = False

    def size(self, config: Fields, name: str, minimum: int = 1) -> int:
        """A size, with the class's default."""
        return config.integer(name, default=self.defaults[name], minimum=minimum)


def table(config: Fields, out: Table, variant: Variant) -> None:
    """
    The module table.

    Source:
        transformers@5.23.0, models/deepseek_v3/modeling_deepseek_v3.py, DeepseekV3ForCausalLM, and the same names in deepseek_v2,
        deepseek_v32 and glm_moe_dsa.
    """
    dims = read_dims(config, kv_heads=variant.defaults.get("num_key_value_heads"), strict=variant.strict)
    first = min(variant.size(config, "first_k_dense_replace", minimum=0), dims.layers)
    kinds = ["dense"] * first + ["sparse"] * (dims.layers - first)
    if variant.indexed:
        kinds = kinds_of(config, "mlp_layer_types", kinds, ("dense", "sparse"))

    model = out.within("model.")
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    _attention(config, dims, model, variant)
    bias = variant.mlp_bias and config.flag("mlp_bias", default=False)
    gated_mlp(model.within("layers.*.", where(kinds, "dense")), dims.hidden, dims.width, bias=bias)
    _experts(config, dims, model.within("layers.*.", where(kinds, "sparse")), variant, bias)
    norms(model.within("layers.*.", range(dims.layers)), dims.hidden, "input_layernorm", "post_attention_layernorm")
    model.norm("norm", dims.hidden)
    rotary(model, config, variant.size(config, "qk_rope_head_dim"))
    head(out, dims)


def _attention(config: Fields, dims: Dims, model: Table, variant: Variant) -> None:
    latent, turning = variant.size(config, "kv_lora_rank"), variant.size(config, "qk_rope_head_dim")
    still, value = variant.size(config, "qk_nope_head_dim"), variant.size(config, "v_head_dim")
    bias = config.flag("attention_bias", default=False)
    at = model.within("layers.*.self_attn.", range(dims.layers))
    # `null` means full-rank queries; a missing field means the class's rank.
    full_rank = "q_lora_rank" in config.values and config.raw("q_lora_rank") is None and not variant.indexed
    rank = variant.size(config, "q_lora_rank")
    if full_rank:
        at.linear("q_proj", dims.hidden, dims.heads * (still + turning))
    else:
        at.linear("q_a_proj", dims.hidden, rank, bias=bias)
        at.norm("q_a_layernorm", rank)
        at.linear("q_b_proj", rank, dims.heads * (still + turning))
    at.linear("kv_a_proj_with_mqa", dims.hidden, latent + turning, bias=bias)
    at.norm("kv_a_layernorm", latent)
    at.linear("kv_b_proj", latent, dims.heads * (still + value))
    at.linear("o_proj", dims.heads * value, dims.hidden, bias=bias)
    if variant.indexed:
        _indexer(config, dims, model, variant, rank)


def _indexer(config: Fields, dims: Dims, model: Table, variant: Variant, rank: int) -> None:
    """The indexer of V3.2; GLM-5 lets layers share the choice of an earlier one."""
    heads, width = variant.size(config, "index_n_heads"), variant.size(config, "index_head_dim")
    at = model.within("layers.*.self_attn.indexer.", where(_indexers(config, dims.layers), "full"))
    at.linear("wq_b", rank, heads * width)
    at.linear("wk", dims.hidden, width)
    at.norm("k_norm", width, bias=True)
    at.linear("weights_proj", dims.hidden, heads)


def _indexers(config: Fields, layers: int) -> list[str]:
    """
    Source:
        transformers@5.23.0, models/glm_moe_dsa/configuration_glm_moe_dsa.py, GlmMoeDsaConfig.__post_init__.
    """
    if config.text("model_type") != "glm_moe_dsa":
        return ["full"] * layers
    every = config.integer("index_topk_freq", default=1, minimum=0)
    offset = config.integer("index_skip_topk_offset", default=2, minimum=0)
    kinds = ["full" if max(i - offset + 1, 0) % max(every, 1) == 0 else "shared" for i in range(layers)]
    pattern = config.raw("index_topk_pattern")
    if "indexer_types" not in config and isinstance(pattern, str):
        letters = [{"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern]
        config = Fields({"index_topk_pattern": letters}, path=config.path)
    name = "indexer_types" if "indexer_types" in config else "index_topk_pattern"
    return kinds_of(config, name, kinds, _INDEXERS)


_INDEXERS = ("full", "shared")


def _experts(config: Fields, dims: Dims, layer: Table, variant: Variant, bias: bool) -> None:
    number = config.integer("n_routed_experts", "num_experts", "num_local_experts", default=variant.defaults["n_routed_experts"])
    width = variant.size(config, "moe_intermediate_size")
    experts(layer, dims.hidden, width, number)
    router(layer, dims.hidden, number)
    if variant.corrected:
        layer.buffer("mlp.gate.e_score_correction_bias", (number,), persistent=True)
    gated_mlp(layer, dims.hidden, width * variant.size(config, "n_shared_experts"), name="mlp.shared_experts", bias=bias)


_V2 = Variant(
    {
        "first_k_dense_replace": 0,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
    },
    corrected=False,
    mlp_bias=True,
    strict=True,
)
_V3_SIZES = {
    **_V2.defaults,
    "num_key_value_heads": 128,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "moe_intermediate_size": 2048,
}
_V3 = Variant(_V3_SIZES)
_V32 = Variant({**_V3_SIZES, "index_n_heads": 64, "index_head_dim": 128}, indexed=True)
_GLM5 = Variant(
    {
        **_V32.defaults,
        "num_key_value_heads": 64,
        "q_lora_rank": 2048,
        "qk_nope_head_dim": 192,
        "v_head_dim": 256,
        "index_n_heads": 32,
    },
    indexed=True,
)


def decoder(config: Fields, variant: Variant, *, routing: str) -> Decoder:
    """
    The structure: latent attention; dense layers, then experts beside one for all tokens.

    Source:
        transformers@5.23.0, models/deepseek_v3/modeling_deepseek_v3.py, DeepseekV3Attention, DeepseekV3MoE; models/deepseek_v2.
    """
    dims = read_dims(config, kv_heads=variant.defaults.get("num_key_value_heads"), strict=variant.strict)
    act = config.text("hidden_act", default="silu")
    latent = Latent(
        rank=variant.size(config, "kv_lora_rank"),
        still=variant.size(config, "qk_nope_head_dim"),
        turning=variant.size(config, "qk_rope_head_dim"),
        value=variant.size(config, "v_head_dim"),
    )
    rank = variant.size(config, "q_lora_rank")
    full_rank = "q_lora_rank" in config.values and config.raw("q_lora_rank") is None
    pairs = "complex" if routing == "deepseek_v2" else "pairs" if config.flag("rope_interleave", default=True) else "whole"
    structure = llama_like(
        dims,
        act=act,
        rotary_dim=latent.turning,
        attention={
            "head_dim": latent.still + latent.turning,
            "q": "self_attn.q_proj" if full_rank else "self_attn.q_b_proj",
            "q_down": "" if full_rank else "self_attn.q_a_proj",
            "k": "self_attn.kv_a_proj_with_mqa",
            "v": "self_attn.kv_b_proj",
            "q_norm": None if full_rank else NormSpec("self_attn.q_a_layernorm", "rms", rank),
            "k_norm": NormSpec("self_attn.kv_a_layernorm", "rms", latent.rank),
            "rotary_style": pairs,
            "latent": latent,
            "style": "latent",
            **attention_dropout(config),
        },
        decoder={"table_style": "complex"} if routing == "deepseek_v2" else {},
    )
    first = variant.size(config, "first_k_dense_replace", minimum=0)
    return with_experts(structure, _moe(config, variant, act, routing), range(first, dims.layers))


def _moe(config: Fields, variant: Variant, act: str, routing: str) -> Moe:
    width = variant.size(config, "moe_intermediate_size")
    in_groups = routing == "deepseek_v3" or config.text("topk_method", default="greedy") == "group_limited_greedy"
    return Moe(
        config.integer("n_routed_experts", "num_experts", "num_local_experts", default=variant.defaults["n_routed_experts"]),
        config.integer("num_experts_per_tok", default=8 if routing == "deepseek_v3" else 6),
        width,
        act,
        routing=routing,
        normalised=routing == "deepseek_v3" and config.flag("norm_topk_prob", default=True),
        groups=config.integer("n_group", default=8) if in_groups else 1,
        open_groups=config.integer("topk_group", default=4) if in_groups else 1,
        shared=shared_expert(width * variant.size(config, "n_shared_experts"), act, "mlp.shared_experts"),
    )


def v2_decoder(config: Fields) -> Decoder:
    """DeepseekV2ForCausalLM's structure."""
    return decoder(config, _V2, routing="deepseek_v2")


def v3_decoder(config: Fields) -> Decoder:
    """DeepseekV3ForCausalLM's structure."""
    return decoder(config, _V3, routing="deepseek_v3")


FAMILIES = {
    "deepseek_v2": Family(lambda config, out: table(config, out, _V2), v2_decoder),
    "deepseek_v3": Family(lambda config, out: table(config, out, _V3), v3_decoder),
    "kimi_k2": Family(lambda config, out: table(config, out, _V3), v3_decoder),
    "deepseek_v32": Family(lambda config, out: table(config, out, _V32), needs=_DSA),
    "glm_moe_dsa": Family(lambda config, out: table(config, out, _GLM5), needs=_DSA),
}
