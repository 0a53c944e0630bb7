"""LoRA adapters as PEFT builds them: the tensors of each kind of target."""

from __future__ import annotations

from planner.formulas.blocks import TensorShape

Adapter = tuple[TensorShape, ...]
"""The trainable tensors that one target gets. rsLoRA and alpha change the scale only, and no shape."""


def lora_linear(in_features: int, out_features: int, rank: int, *, dora: bool = False) -> Adapter:
    """
    LoRA on a linear or a `Conv1D`: A [r, in], B [out, r]; with DoRA a magnitude [out].

    Source:
        peft@0.21.2, tuners/lora/layer.py, LoraLayer.update_layer; tuners/lora/dora.py, DoraLinearLayer.update_layer.
    """
    pair = TensorShape("lora_A.weight", (rank, in_features)), TensorShape("lora_B.weight", (out_features, rank))
    return (*pair, TensorShape("lora_magnitude_vector.weight", (out_features,))) if dora else pair


def lora_embedding(rows: int, width: int, rank: int, *, dora: bool = False) -> Adapter:
    """
    LoRA on an embedding: A [r, rows], B [width, r]; with DoRA a magnitude [width].

    Source:
        peft@0.21.2, tuners/lora/layer.py, Embedding.update_layer; tuners/lora/variants.py, DoraEmbeddingVariant.init.
    """
    pair = TensorShape("lora_embedding_A", (rank, rows)), TensorShape("lora_embedding_B", (width, rank))
    return (*pair, TensorShape("lora_magnitude_vector.weight", (width,))) if dora else pair


def lora_experts(num_experts: int, in_features: int, out_features: int, rank: int) -> Adapter:
    """
    LoRA on a bare parameter that stacks experts: A [r * experts, in], B [out, r * experts].

    PEFT refuses dropout, DoRA and a bias on these.

    Args:
        num_experts: Experts in the stack; 1 for a two-dimensional parameter.
        in_features: Width of one expert's input: the last axis, or the middle one where the module says `is_transposed`.
        out_features: Width of one expert's output.
        rank: The rank of one expert's update; PEFT doubles it for a fused gate and up projection.

    Source:
        peft@0.21.2, tuners/lora/layer.py, ParamWrapper.update_layer.
    """
    return (
        TensorShape("lora_A.weight", (rank * num_experts, in_features)),
        TensorShape("lora_B.weight", (out_features, rank * num_experts)),
    )
