"""
The structure of a text decoder: what a layer is made of, in the words of the modeling code. Nothing about memory.

A family's `decoder(fields)` fills these in; `planner.operations.decoder` walks them. Names are paths below the layer (or below
the model, for what occurs once), as in the module table.
"""

from __future__ import annotations

from planner.value import NamedTuple


class NormSpec(NamedTuple):
    """
    A normalisation.

    Attributes:
        name: Its path; empty where it has no parameters.
        kind: As in `planner.operations.norm.Norm`.
        width: Elements that are normalised together.
    """

    name: str
    kind: str
    width: int


class Latent(NamedTuple):
    """
    Low-rank keys and values (DeepSeek).

    Attributes:
        rank: Width of the latent that both come from.
        still, turning: Elements of a key head without and with positions; the turning ones are shared by all heads.
        value: Width of a value head.
    """

    rank: int
    still: int
    turning: int
    value: int


class Delta(NamedTuple):
    """
    A gated delta network in the place of attention (Qwen3-Next).

    Attributes:
        key_heads, value_heads: How many of each; a key head serves several value heads.
        key_dim, value_dim: Widths of a head.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int


class Attention(NamedTuple):
    """
    Self-attention.

    Attributes:
        heads, kv_heads, head_dim: Query heads, key/value heads, and the width of one.
        q, k, v, out: Paths of the projections.
        fused: Path of one projection that gives q, k and v together; then q, k and v are empty.
        fused_layout: How the fused output is taken apart: `slices` (q, k, v by indexing), `split` (by torch.split or chunk),
            `picked` and `multi_query` (Falcon: k and v by a list of indices; the former broadcast to all heads).
        scales_queries: Queries are multiplied by a constant before the kernel sees them (OPT); eager scores still are.
        rotary_dim: Elements of a head that are rotated; 0 without rotary positions.
        rotary_table: Which of the decoder's rotary tables turns it.
        rotary_positions: Positions that the attention keeps tables of and copies in every layer (GPT-J); else 0.
        clips: The fused output is clamped (MPT's `clip_qkv`).
        rotary_style: How the family spells it, as in `planner.operations.rotary`.
        scaled_by_position: Turned queries are multiplied by a number a position (Ministral-3).
        q_norm, k_norm: Normalisations of queries and keys; `width` tells whether by head or over all heads.
        norms_each: Each of these follows its projection (Qwen-3), instead of both following all three (Gemma-3).
        softcap: Scores pass through tanh (Gemma-2, eager only).
        dropout: Dropout on the attention weights.
        plain_softmax: Eager scores go through softmax in their own dtype, which only autocast makes fp32 (GPT-2).
        sliding_window: Tokens that a query looks back; None for all.
        alibi: Positions enter as a bias on the scores.
        alibi_length: Tokens that the bias is made for, where that is not the batch's length (MPT); else 0.
        forces_eager: The family has no other kernel than its own Python one.
        latent: Sizes of multi-head latent attention; then `k` is the path of the projection down and `v` of the one up.
        q_down: Path of the first of two query projections; empty without.
        convolution, taps: Path and width of the depthwise convolution that stands in for scores (LFM2), or before them (Qwen3-Next).
        delta: Sizes of a gated delta network.
        style: The attention module where it is not Llama's with other fields, as in `planner.operations.decoder`.
    """

    heads: int
    kv_heads: int
    head_dim: int
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    out: str = "self_attn.o_proj"
    fused: str = ""
    fused_layout: str = "slices"
    scales_queries: bool = False
    rotary_dim: int = 0
    rotary_table: int = 0
    rotary_positions: int = 0
    clips: bool = False
    rotary_style: str = "whole"
    q_norm: NormSpec | None = None
    k_norm: NormSpec | None = None
    norms_each: bool = False
    scaled_by_position: bool = False
    softcap: bool = False
    dropout: float = 0.0
    plain_softmax: bool = False
    sliding_window: int | None = None
    alibi: bool = False
    alibi_length: int = 0
    forces_eager: bool = False
    latent: Latent | None = None
    q_down: str = ""
    convolution: str = ""
    taps: int = 0
    delta: Delta | None = None
    style: str = ""

    @property
    def value_dim(self) -> int:
        """Width of a value head."""
        return self.latent.value if self.latent else self.head_dim


class Mlp(NamedTuple):
    """
    A dense feed-forward block.

    Attributes:
        width: Its inner width.
        act: Activation as config.json names it.
        gate, up, down: Paths; without a gate the block is plain: down(act(up(x))).
        fused: Path of one projection that gives gate and up together (then gate and up are empty).
        dropout: Dropout on its output.
    """

    width: int
    act: str
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    fused: str = ""
    dropout: float = 0.0


class Moe(NamedTuple):
    """
    A routed block whose experts are fused parameters.

    Attributes:
        experts, top_k: How many there are, and how many a token visits.
        width: Inner width of an expert.
        act: Activation.
        router: Path of the router's weight (or of its linear).
        gate_up, down: Paths of the stacked parameters [E, 2f, d] and [E, d, f].
        gate_up_bias, down_bias: Paths of their biases; empty without.
        routing: How the router chooses and weighs, as in `planner.operations.routers`; `every_expert` where all see every token.
        normalised: Whether the chosen weights are divided by their sum.
        scaled: Whether they are multiplied by a constant.
        groups, open_groups: Groups of experts, and how many of them are open to a token.
        gating: How gate and up meet, as in `planner.operations.experts`.
        transposed: Whether the stacks lie the other way round, [E, d, 2f] and [E, f, d].
        jitter: How often the block multiplies its input by noise, in place.
        shared: A dense block beside the experts (Qwen2-MoE, DeepSeek).
        shared_gate: Path of the sigmoid gate on the shared block; empty without.
    """

    experts: int
    top_k: int
    width: int
    act: str
    router: str = "mlp.gate.weight"
    gate_up: str = "mlp.experts.gate_up_proj"
    down: str = "mlp.experts.down_proj"
    gate_up_bias: str = ""
    down_bias: str = ""
    routing: str = "softmax"
    normalised: bool = False
    scaled: bool = False
    groups: int = 1
    open_groups: int = 1
    gating: str = "halves"
    transposed: bool = False
    jitter: int = 0
    shared: Mlp | None = None
    shared_gate: str = ""


class Layer(NamedTuple):
    """
    One kind of decoder layer.

    Attributes:
        attention: Its attention.
        mlp: Its feed-forward block.
        layout: How norms and residuals go: `pre` (Llama), `post` (OLMo-2: norm after each block), `sandwich` (Gemma-2: before and
            after), `parallel` (Phi: one norm, both blocks side by side), `parallel_onto_residual` (Cohere: the same, summed in another
            order), `stablelm` (`pre` with other names kept); others as `planner.operations.gpt` has them.
        norms: In the order of use. pre: attention, mlp. post: after attention, after mlp. sandwich: before and after attention,
            before and after mlp. parallel: one for both.
        dropout: Dropout on each block's output before the residual sum.
        residual_scale: Block outputs are multiplied by a constant before the sum (Granite).
        returns_weights: The layer returns its attention weights too, which the loop keeps until the next one returns.
    """

    attention: Attention
    mlp: Mlp | Moe
    layout: str
    norms: tuple[NormSpec, ...]
    dropout: float = 0.0
    residual_scale: bool = False
    returns_weights: bool = False


class Decoder(NamedTuple):
    """
    A text decoder.

    Attributes:
        hidden_size, vocab_size: d and V.
        layers: The kind of every layer, in order; equal layers are one object.
        layer_prefix: Path of a layer, `*` for its index: `model.layers.*.`.
        embedding: Path of the token embedding.
        positions: Path of a learned position embedding; empty without.
        positions_by_token: Positions are looked up for every token (OPT), not once for all sequences.
        project_in, project_out: Paths of linears behind the embedding and before the head (OPT-350M); empty without.
        embedding_norm: A norm on the embedding (BLOOM).
        embedding_scale: The embedding's own module multiplies its output by a constant (Gemma).
        embedding_multiplier: The model multiplies the embedding by a constant (Granite).
        dropout: Dropout on the embedding.
        norm: The final norm; None where there is none.
        head: Path of the head.
        logit_softcap: Logits pass through tanh (Gemma-2).
        logit_scale: Logits are multiplied by a constant (Cohere, Granite).
        rotary_dim: Width of the rotary tables; 0 without.
        table_style: What a set of them is, as in `planner.operations.rotary`: `doubled` cosines and sines (Llama), `single` (gpt-oss), or
            `complex` numbers (DeepSeek-V2, Llama-4), or `three_axes` of positions, for every token (Qwen-VL).
        rotary_in_fp32: The rotary tables are not cast to the hidden states' dtype (OLMo).
        rotary_tables: How many sets of them there are (Gemma-3: local and global).
        always_masked: The mask is made even where sdpa could do without (Falcon).
        text_prefix: Of a composite model: only what lies under this path, and the head, works on a batch of text; empty for all.
        boolean_mask: The eager mask is turned back into booleans (MPT).
        supports_sdpa: Whether the family has it (Gemma-2 has not: eager takes its place).
        flash_refusal: Why `flash_attention_2` cannot be planned; empty where it can.
    """

    hidden_size: int
    vocab_size: int
    layers: tuple[Layer, ...]
    layer_prefix: str = "model.layers.*."
    embedding: str = "model.embed_tokens"
    positions: str = ""
    positions_by_token: bool = False
    project_in: str = ""
    project_out: str = ""
    embedding_norm: NormSpec | None = None
    embedding_scale: bool = False
    embedding_multiplier: bool = False
    dropout: float = 0.0
    norm: NormSpec | None = None
    head: str = "lm_head"
    logit_softcap: bool = False
    logit_scale: bool = False
    rotary_dim: int = 0
    table_style: str = "doubled"
    rotary_in_fp32: bool = False
    rotary_tables: int = 1
    always_masked: bool = False
    boolean_mask: bool = False
    supports_sdpa: bool = True
    flash_refusal: str = ""
    text_prefix: str = ""

    def reaches(self, name: str) -> bool:
        """Whether a module works on a batch of text; a tower for images does not."""
        return name.startswith(self.text_prefix) or name == self.head
