"""DeepSeek V4: one key head, attention over compressed keys, hyper-connections, and routing by hash in the first layers."""

from __future__ import annotations

from planner.architecture.blocks import experts, gated_mlp, head, norms, read_dims, refusal, router
from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.sections import filled, frequencies, kinds_of, where
from planner.architecture.table import Table
from planner.dtypes import DType

_SLIDING, _SPARSE, _HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
_OF_RATIO = {0: _SLIDING, 4: _SPARSE, 128: _HEAVY}


def table(config: Fields, out: Table) -> None:
    """
    The module table.

    Source:
        transformers@5.23.0, models/deepseek_v4/modeling_deepseek_v4.py, DeepseekV4ForCausalLM.
    """
    inner = config.integer("moe_intermediate_size", "intermediate_size", default=2048)
    dims = read_dims(filled(config, intermediate_size=inner), kv_heads=1, head_dim=512)
    number, streams = config.integer("n_routed_experts", "num_local_experts", default=256), config.integer("hc_mult", default=4)
    hashed = min(config.integer("num_hash_layers", default=3, minimum=0), dims.layers)
    routing = kinds_of(config, "mlp_layer_types", ["hash_moe"] * hashed + ["moe"] * (dims.layers - hashed), ("hash_moe", "moe"))
    chosen, bias = config.integer("num_experts_per_tok", default=6), config.flag("mlp_bias", default=False)

    model = out.within("model.")
    layer = model.within("layers.*.", range(dims.layers))
    model.embedding("embed_tokens", dims.vocab, dims.hidden)
    _attention(config, model, dims.layers, dims.hidden, dims.heads, dims.head_dim)
    router(layer, dims.hidden, number)
    by_hash, by_score = model.within("layers.*.", where(routing, "hash_moe")), model.within("layers.*.", where(routing, "moe"))
    by_hash.buffer("mlp.gate.tid2eid", (dims.vocab, chosen), DType.INT64, persistent=True)
    by_score.buffer("mlp.gate.e_score_correction_bias", (number,), persistent=True)
    experts(layer, dims.hidden, inner, number)
    gated_mlp(layer, dims.hidden, inner, name="mlp.shared_experts", bias=bias)
    norms(layer, dims.hidden, "input_layernorm", "post_attention_layernorm")
    for name in ("attn_hc", "ffn_hc"):
        layer.parameter(f"{name}.fn", ((2 + streams) * streams, streams * dims.hidden))
        layer.parameter(f"{name}.base", ((2 + streams) * streams,))
        layer.parameter(f"{name}.scale", (3,))
    model.norm("norm", dims.hidden)
    _rotary(config, model, "rotary_emb", dims.head_dim)
    model.parameter("hc_head.hc_fn", (streams, streams * dims.hidden))
    model.parameter("hc_head.hc_base", (streams,))
    model.parameter("hc_head.hc_scale", (1,))
    head(out, dims)


def _attention(config: Fields, model: Table, layers: int, hidden: int, heads: int, head_dim: int) -> None:
    """Low-rank queries, one key that is also the value, a grouped low-rank output, and compressors of two kinds."""
    rank, out_rank = config.integer("q_lora_rank", default=1024), config.integer("o_lora_rank", default=1024)
    groups = config.integer("o_groups", default=8)
    if heads % groups:
        raise refusal(config, "o_groups", f"a divisor of the {heads} attention heads")
    kinds = _kinds(config, layers)
    at = model.within("layers.*.self_attn.", range(layers))
    at.parameter("sinks", (heads,))
    at.linear("q_a_proj", hidden, rank)
    at.norm("q_a_norm", rank)
    at.linear("q_b_proj", rank, heads * head_dim)
    at.linear("kv_proj", hidden, head_dim)
    at.norm("kv_norm", head_dim)
    at.linear_subclass("o_a_proj", heads * head_dim // groups, groups * out_rank)
    at.linear("o_b_proj", groups * out_rank, hidden)

    rates = config.section("compress_rates", default={})
    sparse = config.integer("compress_rate_csa", default=rates.integer(_SPARSE, default=4))
    heavy = config.integer("compress_rate_hca", default=rates.integer(_HEAVY, default=128))
    width, index_heads = config.integer("index_head_dim", default=128), config.integer("index_n_heads", default=64)
    compressor = model.within("layers.*.self_attn.compressor.", where(kinds, _SPARSE))
    _compressor(config, compressor, hidden, head_dim, head_dim, sparse, overlap=2)
    indexer = compressor.within("indexer.")
    _compressor(config, indexer, hidden, width, head_dim, sparse, overlap=2)
    indexer.linear("q_b_proj", rank, index_heads * width)
    indexer.linear("scorer.weights_proj", hidden, index_heads)
    compressor = model.within("layers.*.self_attn.compressor.", where(kinds, _HEAVY))
    _compressor(config, compressor, hidden, head_dim, head_dim, heavy, overlap=1)


def _compressor(config: Fields, at: Table, hidden: int, width: int, head_dim: int, rate: int, *, overlap: int) -> None:
    """Pools `rate` keys into one; the sparse kind lets neighbouring windows overlap and so projects to twice the width."""
    at.parameter("position_bias", (rate, overlap * width))
    at.linear("kv_proj", hidden, overlap * width)
    at.linear("gate_proj", hidden, overlap * width)
    at.norm("kv_norm", width)
    _rotary(config, at, "rotary_emb", head_dim)


def _rotary(config: Fields, at: Table, name: str, head_dim: int) -> None:
    turning = config.integer("qk_rope_head_dim", default=max(1, head_dim // 8), maximum=head_dim)
    if "partial_rotary_factor" in config:
        share = config.number("partial_rotary_factor")
        if not 0 < share <= 1:
            raise refusal(config, "partial_rotary_factor", "above 0 and at most 1")
        turning = int(head_dim * share)
    for kind in ("main", "compress"):
        frequencies(at, name, (turning + 1) // 2, prefix=f"{kind}_")


def _kinds(config: Fields, layers: int) -> list[str]:
    """
    The kind of attention of each layer: `layer_types`, older files' `compress_ratios`, or the class's pattern.

    Source:
        transformers@5.23.0, models/deepseek_v4/configuration_deepseek_v4.py, DeepseekV4Config.__post_init__.
    """
    kinds = [_HEAVY] * min(layers, 2) + [_SPARSE if i % 2 else _HEAVY for i in range(max(layers - 2, 0))]
    if "layer_types" not in config and "compress_ratios" in config:
        ratios = config.integers("compress_ratios")[:layers]
        if len(ratios) < layers or not set(ratios) <= set(_OF_RATIO):
            raise refusal(config, "compress_ratios", f"a list of 0, 4 or 128 for each of the {layers} layers")
        return [_OF_RATIO[ratio] for ratio in ratios]
    return kinds_of(config, "layer_types", kinds, (_SLIDING, _SPARSE, _HEAVY))


FAMILIES = {"deepseek_v4": Family(table, needs="compressed attention, hyper-connections and hash routing")}
