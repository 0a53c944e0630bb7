"""
The matrix of training runs that the closed form is held against: models, recipes and shapes.

Real widths, vocabularies and biases; two layers (and three, for what one more layer adds). Gemma 2 has eager attention alone:
transformers refuses `sdpa` for it (modeling_gemma2.py, `_supports_sdpa = False`). Nothing here imports qplan or torch:
a run is described twice, once as the oracle's command line and once as the knobs of `planner.recipe.Recipe`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

LAYERS = 2
SHAPES = ((1, 512), (2, 1024))
RANK = 16


@dataclass(frozen=True)
class Model:
    """A checkpoint's shapes, cut to a few layers."""

    name: str
    model_type: str
    fields: dict[str, object]
    qkvo: tuple[str, ...]
    layers_field: str = "num_hidden_layers"
    section: str = ""
    """Where a composite model's config has the fields of its text decoder; empty for at the top."""
    layer_types: tuple[str, ...] = ()
    attentions: tuple[str, ...] = ("sdpa", "eager")
    few: bool = False
    """Whether a dozen runs are enough: its attention has been through the whole grid in another family."""
    pads: bool = False
    """Whether sdpa runs have padding: keys and values of different widths keep CUDA from flash attention, and the oracle does not."""
    is_sampled: bool = False
    """Whether eight runs are enough: the family differs from another in a few operations, and a test holds its layers to real ones."""

    def config(self, layers: int) -> dict[str, object]:
        """The config.json fields of this model with so many layers."""
        own: dict[str, object] = {self.layers_field: layers}
        if self.layer_types:
            own["layer_types"] = [self.layer_types[i % len(self.layer_types)] for i in range(layers)]
        if not self.section:
            return {**self.fields, **own}
        text = self.fields[self.section]
        assert isinstance(text, dict)
        return {**self.fields, self.section: {**text, **own}}


def _decoder(hidden: int, inner: int, heads: tuple[int, int], vocab: int, positions: int, **more: object) -> dict[str, object]:
    """The fields that most config.json files share; `heads` are those of queries and of keys."""
    return {
        "hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads[0], "num_key_value_heads": heads[1],
        "vocab_size": vocab, "max_position_embeddings": positions, "tie_word_embeddings": False, **more,
    }  # fmt: skip


_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
_SILU = {"hidden_act": "silu"}
_GEMMA = {
    "tie_word_embeddings": True, "head_dim": 256, "query_pre_attn_scalar": 256, "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
}  # fmt: skip
_GEMMA_2 = {"sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **_GEMMA}
_PYTHIA = {
    "hidden_size": 4096, "intermediate_size": 16384, "num_attention_heads": 32, "vocab_size": 50432,
    "max_position_embeddings": 2048, "rotary_pct": 0.25, "use_parallel_residual": True, "tie_word_embeddings": False,
    "hidden_act": "gelu",
}  # fmt: skip
_GPT2 = {
    "n_embd": 1600, "n_head": 25, "n_positions": 1024, "vocab_size": 50257, "activation_function": "gelu_new",
    "tie_word_embeddings": True,
}  # fmt: skip
_OPT = {
    "hidden_size": 4096, "num_attention_heads": 32, "ffn_dim": 16384, "word_embed_proj_dim": 4096, "vocab_size": 50272,
    "max_position_embeddings": 2048, "do_layer_norm_before": True, "activation_function": "relu", "tie_word_embeddings": True,
}  # fmt: skip
_FALCON = {
    "hidden_size": 4544, "num_attention_heads": 71, "vocab_size": 65024, "multi_query": True, "new_decoder_architecture": False,
    "parallel_attn": True, "bias": False, "alibi": False, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip

_LATENT = {
    "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "first_k_dense_replace": 1, **_SILU,
}  # fmt: skip
_ROUTED = (
    Model(
        "mixtral-8x7b",
        "mixtral",
        _decoder(
            4096, 14336, (32, 8), 32000, 32768, num_local_experts=8, num_experts_per_tok=2, sliding_window=None, **_SILU,
        ),
        _QKVO,
        few=True,
    ),
    Model(
        "qwen3-30b-a3b",
        "qwen3_moe",
        _decoder(
            2048, 6144, (32, 4), 151936, 40960, head_dim=128, attention_bias=False, num_experts=128, num_experts_per_tok=8,
            moe_intermediate_size=768, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], **_SILU,
        ),
        _QKVO,
        few=True,
    ),
    Model(
        "qwen1.5-moe-a2.7b",
        "qwen2_moe",
        _decoder(
            2048, 5632, (16, 16), 151936, 8192, num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632, norm_topk_prob=False, decoder_sparse_step=1, use_sliding_window=False, **_SILU,
        ),
        _QKVO,
        few=True,
    ),
    Model(
        "olmoe-1b-7b",
        "olmoe",
        _decoder(
            2048, 1024, (16, 16), 50304, 4096, num_experts=64, num_experts_per_tok=8, norm_topk_prob=False, clip_qkv=None, **_SILU,
        ),
        _QKVO,
        few=True,
    ),
    Model(
        "granite-3.0-1b-a400m",
        "granitemoe",
        {
            **_decoder(
                1024, 512, (16, 8), 49155, 4096, num_local_experts=32, num_experts_per_tok=8, embedding_multiplier=12.0,
                attention_multiplier=0.015625, residual_multiplier=0.22, logits_scaling=6.0, attention_bias=False, **_SILU,
            ),
            "tie_word_embeddings": True,
        },
        _QKVO,
        few=True,
    ),
    Model(
        "minimax-m2.5",
        "minimax_m2",
        _decoder(
            3072, 1536, (48, 8), 200064, 196608, head_dim=128, num_local_experts=64, num_experts_per_tok=8, rotary_dim=64,
            rms_norm_eps=1e-6, **_SILU,
        ),
        _QKVO,
        few=True,
    ),
    Model(
        "glm-4.5-air",
        "glm4_moe",
        _decoder(
            4096, 10944, (96, 8), 151552, 131072, head_dim=128, moe_intermediate_size=1408, n_routed_experts=128, n_shared_experts=1,
            num_experts_per_tok=8, first_k_dense_replace=1, n_group=1, topk_group=1, norm_topk_prob=True, use_qk_norm=False,
            attention_bias=True, partial_rotary_factor=0.5, routed_scaling_factor=1.0, **_SILU,
        ),
        _QKVO,
        few=True,
    ),
    Model(
        "gpt-oss-20b",
        "gpt_oss",
        _decoder(
            2880, 2880, (64, 8), 201088, 131072, head_dim=64, num_local_experts=32, num_experts_per_tok=4, sliding_window=128,
            attention_bias=True, **_SILU,
        ),
        _QKVO,
        layer_types=("sliding_attention", "full_attention"),
        attentions=("eager",),
        few=True,
    ),
    Model(
        "deepseek-v2-lite",
        "deepseek_v2",
        _decoder(
            2048, 10944, (16, 16), 102400, 4096, q_lora_rank=None, n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6,
            moe_intermediate_size=1408, n_group=1, topk_group=1, topk_method="greedy", norm_topk_prob=False, routed_scaling_factor=1.0,
            **_LATENT,
        ),
        ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        few=True,
        pads=True,
    ),
    Model(
        "deepseek-v3-like",
        "deepseek_v3",
        _decoder(
            2048, 6144, (16, 16), 129280, 4096, q_lora_rank=1536, n_routed_experts=64, n_shared_experts=1, num_experts_per_tok=8,
            moe_intermediate_size=1024, n_group=8, topk_group=4, norm_topk_prob=True, routed_scaling_factor=2.5, **_LATENT,
        ),
        ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
        few=True,
        pads=True,
    ),
    Model(
        "qwen3.5-4b",
        "qwen3_5_text",
        {
            **_decoder(
                2560, 9216, (16, 4), 248320, 262144, head_dim=256, linear_num_value_heads=32, linear_num_key_heads=16,
                linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4, attention_bias=False,
                rope_parameters={"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25}, **_SILU,
            ),
            "tie_word_embeddings": True,
        },
        _QKVO,
        layer_types=("linear_attention", "full_attention"),
        few=True,
    ),
    Model(
        "qwen3-next-like",
        "qwen3_next",
        _decoder(
            2048, 5120, (16, 2), 151936, 262144, head_dim=256, linear_num_value_heads=32, linear_num_key_heads=16,
            linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4, attention_bias=False, num_experts=64,
            num_experts_per_tok=10, moe_intermediate_size=512, shared_expert_intermediate_size=512, norm_topk_prob=True,
            decoder_sparse_step=1, mlp_only_layers=[],
            rope_parameters={"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25}, **_SILU,
        ),
        _QKVO,
        layer_types=("linear_attention", "full_attention"),
        few=True,
    ),
)  # fmt: skip

_TIED: dict[str, object] = {"tie_word_embeddings": True}
_GRANITE = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 16.0, "attention_multiplier": 0.0078125}
_PHI_2 = {"hidden_act": "gelu_new", "partial_rotary_factor": 0.4, "qk_layernorm": False}
_STABLELM = {"partial_rotary_factor": 0.25, "use_qkv_bias": False, "qk_layernorm": False, "use_parallel_residual": False, **_SILU}
_STARCODER_2 = {"hidden_act": "gelu_pytorch_tanh", "use_bias": True, "sliding_window": 4096, **_TIED}
_ALTERNATING = ("sliding_attention", "full_attention")
_GLM = {"head_dim": 128, "attention_bias": True, "partial_rotary_factor": 0.5, "pad_token_id": 0, **_SILU}


def _sampled(
    name: str,
    model_type: str,
    fields: dict[str, object],
    qkvo: tuple[str, ...] = _QKVO,
    *,
    section: str = "",
    layer_types: tuple[str, ...] = (),
) -> Model:
    return Model(name, model_type, fields, qkvo, is_sampled=True, section=section, layer_types=layer_types)


def _composite(text: dict[str, object], vision: dict[str, object], **more: object) -> dict[str, object]:
    return {"text_config": text, "vision_config": vision, **more}


# Towers for images, cut short: a batch of text leaves them alone, but they are loaded, quantised and given adapters.
_SIGLIP = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 2, "num_attention_heads": 16, "image_size": 896,
    "patch_size": 14,
}  # fmt: skip
_PIXTRAL = {
    "model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 16,
    "head_dim": 64, "image_size": 1540, "patch_size": 14,
}  # fmt: skip
_QWEN_TOWER = {"depth": 2, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584, "num_heads": 16}
_QWEN_3_TOWER = {
    "depth": 2, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2560, "num_heads": 16,
    "deepstack_visual_indexes": [1],
}  # fmt: skip
_MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
_YARN: dict[str, object] = {
    "rope_parameters": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16384, "rope_theta": 1000000.0, "rope_type": "yarn", "type": "yarn",
    }
}  # fmt: skip


SAMPLED = (
    _sampled("gemma-2b", "gemma", _decoder(2048, 16384, (8, 1), 256000, 8192, head_dim=256, **_TIED)),
    _sampled("granite-3.1-8b", "granite", _decoder(4096, 12800, (32, 8), 49155, 131072, **_GRANITE, **_SILU, **_TIED)),
    _sampled("smollm3-3b", "smollm3", _decoder(2048, 11008, (16, 4), 128256, 65536, no_rope_layer_interval=2, **_SILU, **_TIED)),
    _sampled("olmo-7b", "olmo", _decoder(4096, 11008, (32, 32), 50304, 2048, **_SILU)),
    _sampled(
        "olmo-3-7b",
        "olmo3",
        _decoder(4096, 11008, (32, 32), 100278, 8192, sliding_window=4096, **_SILU),
        layer_types=_ALTERNATING,
    ),
    _sampled("aya-23-8b", "cohere", _decoder(4096, 14336, (32, 8), 256000, 8192, **_SILU, **_TIED)),
    _sampled("command-r-plus", "cohere", _decoder(12288, 33792, (96, 8), 256000, 8192, use_qk_norm=True, **_SILU, **_TIED)),
    _sampled(
        "command-r7b",
        "cohere2",
        _decoder(4096, 14336, (32, 8), 256000, 132096, head_dim=128, sliding_window=4096, **_SILU, **_TIED),
        layer_types=_ALTERNATING,
    ),
    _sampled("glm-4-9b", "glm", _decoder(4096, 13696, (32, 2), 151552, 131072, **_GLM)),
    _sampled("glm-4-9b-0414", "glm4", _decoder(4096, 13696, (32, 2), 151552, 32768, **_GLM)),
    _sampled("phi-2", "phi", _decoder(2560, 10240, (32, 32), 51200, 2048, **_PHI_2), ("q_proj", "k_proj", "v_proj", "dense")),
    _sampled("stablelm-3b", "stablelm", _decoder(2560, 6912, (32, 32), 50304, 4096, **_STABLELM)),
    _sampled(
        "gemma-3-4b",
        "gemma3",
        _composite(_decoder(2560, 10240, (8, 4), 262208, 131072, sliding_window=1024, **_GEMMA), _SIGLIP),
        section="text_config",
        layer_types=_ALTERNATING,
    ),
    _sampled(
        "ministral-3-3b",
        "mistral3",
        _composite(
            _decoder(3072, 9216, (32, 8), 131072, 262144, model_type="ministral3", head_dim=128, **_YARN, **_SILU, **_TIED),
            _PIXTRAL,
            **_TIED,
        ),
        section="text_config",
    ),
    _sampled(
        "qwen2.5-vl-7b",
        "qwen2_5_vl",
        _decoder(3584, 18944, (28, 4), 152064, 128000, vision_config=_QWEN_TOWER, **_MROPE, **_SILU),
    ),
    _sampled(
        "qwen3-vl-4b",
        "qwen3_vl",
        _composite(_decoder(2560, 9728, (32, 8), 151936, 262144, head_dim=128, **_SILU, **_TIED), _QWEN_3_TOWER, **_TIED),
        section="text_config",
    ),
    _sampled("starcoder2-3b", "starcoder2", _decoder(3072, 12288, (24, 2), 49152, 16384, **_STARCODER_2)),
)

_EAGER = ("eager",)
_GPT_LIKE = (
    Model(
        "falcon-40b",
        "falcon",
        {
            "hidden_size": 8192, "num_attention_heads": 128, "num_kv_heads": 8, "vocab_size": 65024, "new_decoder_architecture": True,
            "parallel_attn": True, "bias": False, "alibi": False, "tie_word_embeddings": False,
        },
        ("query_key_value", "dense"),
        is_sampled=True,
    ),
    Model(
        "gpt-j-6b",
        "gptj",
        {
            "n_embd": 4096, "n_head": 16, "n_positions": 2048, "rotary_dim": 64, "vocab_size": 50400, "activation_function": "gelu_new",
            "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": False,
        },
        ("q_proj", "k_proj", "v_proj", "out_proj"),
        layers_field="n_layer",
        attentions=_EAGER,
        is_sampled=True,
    ),
    Model(
        "starcoder",
        "gpt_bigcode",
        {
            "n_embd": 6144, "n_head": 48, "n_inner": 24576, "n_positions": 8192, "vocab_size": 49152, "multi_query": True,
            "activation_function": "gelu_pytorch_tanh", "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1,
            "attention_softmax_in_fp32": True, "scale_attention_softmax_in_fp32": True, "tie_word_embeddings": True,
        },
        ("c_attn", "c_proj"),
        layers_field="n_layer",
        is_sampled=True,
    ),
    Model(
        "bloom-7b1",
        "bloom",
        {"hidden_size": 4096, "n_head": 32, "vocab_size": 250880, "attention_dropout": 0.0, "hidden_dropout": 0.0},
        ("query_key_value", "dense"),
        layers_field="n_layer",
        attentions=_EAGER,
        is_sampled=True,
    ),
    Model(
        "mpt-7b",
        "mpt",
        {
            "d_model": 4096, "n_heads": 32, "vocab_size": 50432, "max_seq_len": 2048, "expansion_ratio": 4, "no_bias": True,
            "attn_config": {"alibi": True, "attn_pdrop": 0}, "tie_word_embeddings": True,
        },
        ("Wqkv", "out_proj"),
        layers_field="n_layers",
        attentions=_EAGER,
        is_sampled=True,
    ),
)  # fmt: skip

MODELS = (
    Model("llama-2-7b", "llama", _decoder(4096, 11008, (32, 32), 32000, 4096, **_SILU), _QKVO),
    Model("llama-3-8b", "llama", _decoder(4096, 14336, (32, 8), 128256, 8192, rope_theta=500000.0, **_SILU), _QKVO),
    Model("qwen2.5-7b", "qwen2", _decoder(3584, 18944, (28, 4), 152064, 131072, use_sliding_window=False, **_SILU), _QKVO),
    Model("mistral-7b", "mistral", _decoder(4096, 14336, (32, 8), 32000, 32768, sliding_window=4096, **_SILU), _QKVO),
    Model("qwen3-8b", "qwen3", _decoder(4096, 12288, (32, 8), 151936, 40960, head_dim=128, **_SILU), _QKVO),
    Model("gemma-2-9b", "gemma2", _decoder(3584, 14336, (16, 8), 256000, 8192, **_GEMMA_2), _QKVO, attentions=("eager",)),
    Model(
        "gemma-3-4b-text",
        "gemma3_text",
        _decoder(2560, 10240, (8, 4), 262208, 131072, sliding_window=1024, **_GEMMA),
        _QKVO,
        layer_types=("sliding_attention", "full_attention"),
    ),
    Model(
        "phi-3-mini",
        "phi3",
        _decoder(3072, 8192, (32, 32), 32064, 4096, pad_token_id=0, sliding_window=2047, **_SILU),
        ("qkv_proj", "o_proj"),
    ),
    Model("olmo-2-7b", "olmo2", _decoder(4096, 11008, (32, 32), 100352, 4096, **_SILU), _QKVO),
    Model("pythia-6.9b", "gpt_neox", _PYTHIA, ("query_key_value", "dense")),
    Model("gpt2-xl", "gpt2", _GPT2, ("c_attn", "c_proj"), layers_field="n_layer"),
    Model("opt-6.7b", "opt", _OPT, ("q_proj", "k_proj", "v_proj", "out_proj")),
    Model("falcon-7b", "falcon", _FALCON, ("query_key_value", "dense")),
    *SAMPLED,
    *_GPT_LIKE,
    *_ROUTED,
)


@dataclass(frozen=True)
class Run:
    """One run of one model: what the oracle is told, and what qplan is told."""

    method: str = "qlora"
    """full, lora, qlora, or qlora-unprepared (no `prepare_model_for_kbit_training`, bf16 adapters)."""
    checkpointing: str = "non-reentrant"
    attn: str = "sdpa"
    batch: int = 1
    seq: int = 512
    dropout: float = 0.0
    double_quant: bool = True
    padding: bool = False
    named_targets: bool = False
    clip: bool = False
    dora: bool = False
    turing: bool = False
    """A Tesla T4 and a hand-written loop: fp16 throughout, no autocast, the output kept until the step ends."""

    @property
    def is_quantized(self) -> bool:
        """Whether the base is NF4."""
        return self.method.startswith("qlora")

    @property
    def name(self) -> str:
        """A short unique name: `qlora/non-reentrant/sdpa/1x512`, options after it."""
        options = {
            f"dropout-{self.dropout}": self.dropout > 0,
            "single-quant": self.is_quantized and not self.double_quant,
            "padding": self.padding,
            "named-targets": self.named_targets,
            "clip": self.clip,
            "dora": self.dora,
            "turing": self.turing,
        }
        marks = [mark for mark, is_on in options.items() if is_on]
        return "/".join([self.method, self.checkpointing, self.attn, f"{self.batch}x{self.seq}", *marks])

    @property
    def compute_capability(self) -> tuple[int, int]:
        """Of the card that is played."""
        return (7, 5) if self.turing else (8, 0)

    @property
    def autocast(self) -> str | None:
        """The dtype of autocast; pure 16-bit runs have none."""
        return None if self.turing or self.method == "full" else "bf16"

    @property
    def adapter_dtype(self) -> str | None:
        """The dtype of the adapters; None without adapters."""
        return {"full": None, "qlora-unprepared": "bf16"}.get(self.method, "fp32")

    def arguments(self, model: Model, layers: int = LAYERS) -> list[str]:
        """The oracle's command line."""
        words = ["--model-type", model.model_type, "--config", json.dumps(model.config(layers))]
        words += ["--arch", "75" if self.turing else "80"]
        words += ["--dtype", "fp16" if self.turing else "bf16", "--checkpointing", self.checkpointing, "--attn", self.attn]
        words += ["--batch", str(self.batch), "--seq", str(self.seq), "--keep-output" if self.turing else "--trainer"]
        if self.is_quantized:
            words += ["--quant", "nf4", *(["--double-quant"] if self.double_quant else [])]
            # PEFT's prepare_model_for_kbit_training empties the cache behind its casts (auto_clear_cache, on by default)
            words += ["--no-kbit-prepare"] if self.method == "qlora-unprepared" else ["--empty-cache"]
        else:
            words += ["--no-warm-up"]  # without a device_map a 16-bit model is loaded on the CPU, then moved
        if self.method != "full":
            words += ["--rank", str(RANK), "--dropout", str(self.dropout), "--adapter-dtype", str(self.adapter_dtype)]
            words += ["--targets", ",".join(model.qkvo)] if self.named_targets else []
        words += ["--autocast", self.autocast] if self.autocast else []
        flags = {"--clip": self.clip, "--dora": self.dora, "--padding-mask": self.padding}
        return words + [flag for flag, is_on in flags.items() if is_on]

    def recipe(self, model: Model) -> dict[str, object]:
        """The same run as knobs of `planner.recipe.Recipe`."""
        knobs: dict[str, object] = {
            "method": "qlora" if self.is_quantized else self.method, "dtype": "fp16" if self.turing else "bf16",
            "mixed_precision": self.autocast or "no", "optim": "adamw_torch", "batch_size": self.batch, "seq_len": self.seq,
            "max_grad_norm": 1.0 if self.clip else 0.0, "padding": self.padding, "attn": self.attn, "loss": "full",
            "gradient_checkpointing": self.checkpointing != "none", "use_reentrant": self.checkpointing == "reentrant",
            "entry_point": "loop" if self.turing else "trainer",
        }  # fmt: skip
        if self.is_quantized:
            knobs |= {"quantization": "nf4", "double_quant": self.double_quant, "compute_dtype": knobs["dtype"]}
            knobs |= {"kbit_prepare": self.method == "qlora"}
        if self.method != "full":
            knobs |= {"rank": RANK, "dropout": self.dropout, "adapter_dtype": self.adapter_dtype, "dora": self.dora}
            knobs |= {"targets": list(model.qkvo) if self.named_targets else "all-linear"}
        return knobs


METHODS = ("qlora", "lora", "full", "qlora-unprepared")


def runs(model: Model) -> list[Run]:
    """The runs of a model: the whole grid, then one option at a time around it, then a Tesla T4; no run twice."""
    if model.is_sampled:
        return list(dict.fromkeys(_sample("sdpa" if "sdpa" in model.attentions else "eager")))
    if model.few:
        return list(dict.fromkeys(_few(model)))
    every = (*_grid(model.attentions), *_options(model.attentions[0]), *_turing(model.attentions))
    return list(dict.fromkeys(every))


def _sample(attn: str) -> Iterator[Run]:
    yield Run(attn=attn)
    yield Run("qlora", "none", attn, 2, 1024)
    yield Run("qlora", attn=attn, batch=2, padding=True)
    yield Run("qlora-unprepared", "none", attn)
    yield Run("lora", "none", "eager", dropout=0.05)
    yield Run("lora", "non-reentrant", attn, 2, 1024)
    yield Run("full", "none", attn)
    yield Run("full", "non-reentrant", "eager", 2, 1024)


def _few(model: Model) -> Iterator[Run]:
    first, last = model.attentions[0], model.attentions[-1]
    small, large = SHAPES
    padding = model.pads and first == "sdpa"
    yield Run("full", "none", first, *small, padding=padding)
    yield Run("full", "none", last, *small)
    yield Run("full", "non-reentrant", last, *large)
    yield Run("full", "non-reentrant", first, *large, padding=padding)
    yield Run("lora", "none", first, *small, padding=padding)
    yield Run("lora", "non-reentrant", last, *large)
    yield Run("lora", "none", first, *large, named_targets=True, padding=padding)
    yield Run("qlora", "non-reentrant", first, *small, padding=padding)
    yield Run("qlora", "none", last, *large)
    yield Run("qlora", "reentrant", first, *small, padding=padding)
    yield Run("qlora-unprepared", "non-reentrant", first, *large, padding=padding)
    yield Run("qlora-unprepared", "none", last, *small)
    if model.model_type != "gpt_oss":  # whose norms from_pretrained keeps in fp32 beside fp16 weights, and the oracle does not
        yield Run("lora", "none", last, *small, named_targets=True, double_quant=False, turing=True)


def _grid(attentions: tuple[str, ...]) -> Iterator[Run]:
    for method, checkpointing, attn, shape in product(METHODS, ("non-reentrant", "none"), attentions, SHAPES):
        yield Run(method, checkpointing, attn, *shape)


def _options(attn: str) -> Iterator[Run]:
    for base in (Run(method, attn=attn) for method in METHODS):
        yield replace(base, checkpointing="reentrant")
        yield replace(base, batch=2, padding=True)
        yield replace(base, clip=True)
        for checkpointing in ("non-reentrant", "none") if base.method != "full" else ():
            yield replace(base, dropout=0.05, checkpointing=checkpointing)
            yield replace(base, named_targets=True, checkpointing=checkpointing)
    yield Run("qlora", attn=attn, double_quant=False)
    yield Run("lora", attn=attn, dora=True)
    yield Run("lora", "none", attn, dora=True)


def _turing(attentions: tuple[str, ...]) -> Iterator[Run]:
    for method, attn, shape in product(("qlora", "lora"), attentions, SHAPES):
        yield replace(Run(method, "non-reentrant", attn, *shape), named_targets=True, double_quant=False, turing=True)
