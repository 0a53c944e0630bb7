"""
A decoder's forward pass on a tape, block by block as the modeling code runs it.

Local names are kept and dropped where the original keeps and drops them: that is what frees tensors at the right moment.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING

from planner.architecture.decoder import Attention, Layer, Mlp, Moe, NormSpec
from planner.operations.attention import Positions, Shape, attend
from planner.operations.elementwise import act_fn, add, dropout, mul, mul_broadcast, part, scale, split
from planner.operations.families import attention_of, layout_of
from planner.operations.linear import Linear, Parameter
from planner.operations.lora import linear
from planner.operations.norm import Norm, norm
from planner.operations.rotary import JOINED, apply_rotary
from planner.schedule import Tape
from planner.tensors import Tensor
from planner.value import NamedTuple, Value

if TYPE_CHECKING:
    from planner.operations.short_convolution import Convolution


class Weights(Value, eq=False):
    """The modules of one layer, by their paths below it."""

    linears: dict[str, Linear]
    norms: dict[str, Norm]
    parameters: dict[str, Parameter] = field(default_factory=dict)
    convolutions: dict[str, Convolution] = field(default_factory=dict)


class Batch(NamedTuple):
    """
    What the step is fed.

    Attributes:
        size, length: B sequences of S tokens.
        kernel: The attention kernel, as in `planner.operations.attention.attend`.
        has_grouped_products: Whether the card has torch's grouped product (compute capability 8.0 on).
    """

    size: int
    length: int
    kernel: str
    has_grouped_products: bool = True


def decoder_layer(t: Tape, x: Tensor, layer: Layer, weights: Weights, batch: Batch, positions: Positions) -> Tensor:
    """One layer: hidden states [T, d] in, hidden states out."""
    run = Runner(t, layer, weights, batch, positions)
    run_layer = _LAYOUTS.get(layer.layout) or layout_of(layer.layout)
    out = run_layer(run, x)
    if layer.returns_weights and positions.is_looping:
        positions.outputs = run.held
    return out


class Runner:
    """The parts of a layer with their context bound."""

    def __init__(self, t: Tape, layer: Layer, weights: Weights, batch: Batch, positions: Positions) -> None:
        self.t, self.layer, self.weights, self.batch, self.positions = t, layer, weights, batch, positions
        self.held: list[Tensor] = []  # what the layer's own names keep until it returns

    def norm(self, spec: NormSpec, x: Tensor) -> Tensor:
        """One of the layer's norms."""
        return normalise(self.t, spec, x, self.weights)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """One of the layer's linears."""
        return linear(self.t, x, self.weights.linears[name], name)

    def attention(self, x: Tensor) -> Tensor:
        """The attention block, up to the residual sum."""
        out = self.self_attention(x, self.layer.attention)
        return self.leave(out)

    def mlp(self, x: Tensor) -> Tensor:
        """The feed-forward block, up to the residual sum."""
        return self.leave(self.feed_forward(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Dense or routed, as the layer has it."""
        block = self.layer.mlp
        if isinstance(block, Mlp):
            return self.dense(x, block)
        return self.routed(x, block)

    def leave(self, out: Tensor) -> Tensor:
        """What a block's output goes through before the residual sum."""
        out = dropout(self.t, out, self.layer.dropout)
        return scale(self.t, out, "scaled block output") if self.layer.residual_scale else out

    def self_attention(self, x: Tensor, spec: Attention) -> Tensor:
        """
        Projections, positions, scores, output projection.

        Source:
            transformers@5.23.0, models/llama/modeling_llama.py, LlamaAttention.forward, and its siblings.
        """
        if spec.style:
            out: Tensor = attention_of(spec.style)(self, x, spec)
            return out
        t, batch = self.t, self.batch
        tokens = batch.size * batch.length
        q, k, v = self.projections(x, spec, tokens)
        if spec.q_norm is not None and not spec.norms_each:
            q = self.norm(spec.q_norm, q)
        if spec.k_norm is not None and not spec.norms_each:
            k = self.norm(spec.k_norm, k)
        held: tuple[Tensor, ...] = ()
        if spec.rotary_dim:
            cos, sin = self.positions.cos, self.positions.sin
            assert cos is not None and sin is not None
            q, k, held = apply_rotary(t, q, k, cos, sin, spec)
        if spec.scaled_by_position:
            q = mul_broadcast(t, q, t.new(batch.length, q.dtype, "scales of positions"), "scaled queries")
        by_head = spec.rotary_dim > 0 and spec.rotary_style in JOINED
        shape = Shape(batch.size, batch.length, spec.heads, spec.kv_heads, spec.head_dim, spec.head_dim, by_head)
        kernel = "eager" if spec.forces_eager else batch.kernel
        out = attend(t, q, k, v, shape, self.positions, kernel, spec, self.held)
        out = self.linear(spec.out, out)
        del held
        return out

    def projections(self, x: Tensor, spec: Attention, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, as the family projects and takes them apart."""
        if spec.norms_each and spec.q_norm is not None and spec.k_norm is not None:
            q = self.norm(spec.q_norm, self.linear(spec.q, x))
            k = self.norm(spec.k_norm, self.linear(spec.k, x))
            return q, k, self.linear(spec.v, x)
        if not spec.fused:
            q = self.linear(spec.q, x)
            if spec.scales_queries:
                q = scale(self.t, q, "scaled queries")
            return q, self.linear(spec.k, x), self.linear(spec.v, x)
        sizes = [tokens * heads * spec.head_dim for heads in (spec.heads, spec.kv_heads, spec.kv_heads)]
        fused = self.linear(spec.fused, x)
        if spec.fused_layout == "slices":
            return part(self.t, fused, sizes[0]), part(self.t, fused, sizes[1]), part(self.t, fused, sizes[2])
        q, k, v = split(self.t, fused, sizes)
        return q, k, v

    def dense(self, x: Tensor, block: Mlp) -> Tensor:
        """
        down(act(gate(x)) * up(x)), or down(act(up(x))).

        Source:
            transformers@5.23.0, models/llama/modeling_llama.py LlamaMLP.forward; models/phi3 Phi3MLP.forward; models/gpt_neox.
        """
        t = self.t
        if block.fused:
            both = self.linear(block.fused, x)
            gate, both = split(t, both, (both.numel // 2, both.numel // 2))
            both = mul(t, both, act_fn(t, gate, block.act))
            return self.linear(block.down, both)
        if block.gate:
            return self.linear(
                block.down, mul(t, act_fn(t, self.linear(block.gate, x), block.act), self.linear(block.up, x), "gated")
            )
        x = self.linear(block.up, x)
        x = act_fn(t, x, block.act)
        return dropout(t, self.linear(block.down, x), block.dropout)

    def routed(self, x: Tensor, block: Moe) -> Tensor:
        """A routed block."""
        from planner.operations.experts import Context  # most models have no experts
        from planner.operations.moe import moe

        tokens = self.batch.size * self.batch.length
        context = Context(tokens, self.weights.parameters, self.linear, self.dense, self.batch.has_grouped_products)
        return moe(self.t, x, block, context)


def _pre(run: Runner, x: Tensor) -> Tensor:
    """x + attention(norm(x)), then x + mlp(norm(x))."""
    first, second = run.layer.norms
    residual = x
    x = run.norm(first, x)
    x = run.self_attention(x, run.layer.attention)
    x = add(run.t, residual, run.leave(x), "residual stream")
    residual = x
    x = run.norm(second, x)
    x = run.feed_forward(x)
    x = add(run.t, residual, run.leave(x), "residual stream")
    return x


def _post(run: Runner, x: Tensor) -> Tensor:
    """x + norm(attention(x)), then x + norm(mlp(x))."""
    first, second = run.layer.norms
    residual = x
    x = run.attention(x)
    x = run.norm(first, x)
    x = add(run.t, residual, x, "residual stream")
    residual = x
    x = run.mlp(x)
    x = run.norm(second, x)
    x = add(run.t, residual, x, "residual stream")
    return x


def _sandwich(run: Runner, x: Tensor) -> Tensor:
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""
    before_attention, after_attention, before_mlp, after_mlp = run.layer.norms
    residual = x
    x = run.norm(before_attention, x)
    x = run.attention(x)
    x = run.norm(after_attention, x)
    x = add(run.t, residual, x, "residual stream")
    residual = x
    x = run.norm(before_mlp, x)
    x = run.mlp(x)
    x = run.norm(after_mlp, x)
    x = add(run.t, residual, x, "residual stream")
    return x


_LAYOUTS = {"pre": _pre, "post": _post, "sandwich": _sandwich}


def normalise(t: Tape, spec: NormSpec, x: Tensor, weights: Weights) -> Tensor:
    """A norm of the layer by its path; one without parameters has none in the table."""
    before, t.scope = t.scope, spec.name or "norm"
    try:
        return norm(t, x, weights.norms.get(spec.name) or Norm(spec.kind, spec.width, None))
    finally:
        t.scope = before
