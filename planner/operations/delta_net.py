"""
Gated delta networks, and the gated attention between them (Qwen3-Next, Qwen3.5).

Counted is the path of a plain install; `flash-linear-attention` and `causal-conv1d`, where they are installed, take another.
Shapes: B * H heads of keys k and values v; sequences are padded to N chunks of 64 tokens. All of the rule is in fp32, but autocast
lowers its products. As in `planner.operations.decoder`, a local name lives as long as it does in the modeling code.

Source:
    transformers@5.23.0, models/qwen3_next/modeling_qwen3_next.py, torch_chunk_gated_delta_rule, Qwen3NextGatedDeltaNet; models/qwen3_5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.architecture.decoder import Attention, Delta
from planner.dtypes import DType
from planner.formulas.blocks import smaller
from planner.operations.attention import Shape, attend
from planner.operations.elementwise import (
    activation,
    activation_of_result,
    add,
    add_constant,
    concatenate,
    copy,
    mul,
    mul_broadcast,
    negative,
    part,
    repeat,
    rsqrt,
    scale,
    split,
    subtract,
)
from planner.operations.indexing import masked, written
from planner.operations.rotary import apply_rotary
from planner.operations.short_convolution import depthwise
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor
from planner.units import ceil_div

if TYPE_CHECKING:
    from planner.operations.decoder import Runner

CHUNK = 64
MOST_TURNS = 16
"""Longer scans are laid out in so many turns of several chunks each: they save as much, and hold a little more inside a turn."""


def gated_attention(run: Runner, x: Tensor, spec: Attention) -> Tensor:
    """
    Attention whose output passes a sigmoid gate that comes out of the query's projection.

    Source:
        transformers@5.23.0, models/qwen3_next/modeling_qwen3_next.py, Qwen3NextAttention.forward.
    """
    t, batch, positions = run.t, run.batch, run.positions
    assert positions.cos is not None and positions.sin is not None and spec.q_norm is not None and spec.k_norm is not None
    both = run.linear(spec.q, x)
    q, gate = split(t, both, (both.numel // 2, both.numel // 2))
    del both
    gate = copy(t, gate, "gate")
    q = run.norm(spec.q_norm, q)
    k = run.norm(spec.k_norm, run.linear(spec.k, x))
    v = run.linear(spec.v, x)
    q, k, _ = apply_rotary(t, q, k, positions.cos, positions.sin, spec)
    shape = Shape(batch.size, batch.length, spec.heads, spec.kv_heads, spec.head_dim, spec.head_dim, heads_first=True)
    out = attend(t, q, k, v, shape, positions, batch.kernel, spec, run.held)
    out = mul(t, out, activation_of_result(t, gate, "sigmoid"), "gated output")
    return run.linear(spec.out, out)


def delta_net(run: Runner, x: Tensor, spec: Attention) -> Tensor:
    """
    The whole mixer.

    Source:
        transformers@5.23.0, models/qwen3_next/modeling_qwen3_next.py, Qwen3NextGatedDeltaNet.forward; models/qwen3_5.
    """
    t, batch, sizes = run.t, run.batch, spec.delta
    assert sizes is not None and spec.q_norm is not None
    tokens = batch.size * batch.length
    keys, values = tokens * sizes.key_heads * sizes.key_dim, tokens * sizes.value_heads * sizes.value_dim
    if run.positions.unpads:
        x = scale(t, x, "padding set to zero")
    names: list[Tensor] = []
    mixed, z, b, a = _projected(run, x, spec, keys, values, names)
    padded = mixed.numel // batch.length * (batch.length + spec.taps - 1)
    convolved = part(t, depthwise(t, mixed, run.weights.convolutions[spec.convolution], padded), mixed.numel)
    mixed = t.cast(activation(t, convolved, "silu"), mixed.dtype)
    del convolved, names[2:]  # queries, keys and values get new names
    q, k, v = split(t, mixed, (keys, keys, values))
    beta = activation_of_result(t, b, "sigmoid")
    decay = _decay(run, a)
    core = _chunk_rule(t, q, k, v, beta, decay, sizes, batch.size, batch.length)
    if spec.fused:  # heads lie apart in the fused projection, and cannot be seen as rows
        z = copy(t, z, "gate in rows")
    core = run.norm(spec.q_norm, core)
    gate = activation(t, t.cast(z, DType.FP32, "gate in fp32"), "silu")
    out = t.cast(mul(t, core, gate, "gated"), mixed.dtype, "gated, cast")
    del gate, core
    return run.linear(spec.out, out)


def _projected(
    run: Runner, x: Tensor, spec: Attention, keys: int, values: int, names: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mixed queries, keys and values, the gate z, and the inputs of beta and decay; what else keeps a name goes into `names`."""
    t, below = run.t, "linear_attn."
    if not spec.fused:
        mixed = run.linear(below + "in_proj_qkv", x)
        z = run.linear(below + "in_proj_z", x)
        return mixed, z, run.linear(below + "in_proj_b", x), run.linear(below + "in_proj_a", x)
    both, pair = run.linear(spec.fused, x), run.linear(below + "in_proj_ba", x)
    q, k, v, z = split(t, both, (keys, keys, values, values))
    b, a = split(t, pair, (pair.numel // 2, pair.numel // 2))
    b, a = copy(t, b, "beta input"), copy(t, a, "decay input")
    q, k, v = copy(t, q, "queries"), copy(t, k, "keys"), copy(t, v, "values")
    mixed = concatenate(t, (q, k, v), "mixed queries, keys and values")
    names += both, pair, q, k, v
    return mixed, z, b, a


def _decay(run: Runner, a: Tensor) -> Tensor:
    """-exp(A_log) * softplus(a + dt_bias), in fp32."""
    t, parameters = run.t, run.weights.parameters
    rate = negative(t, activation_of_result(t, t.cast(parameters["linear_attn.A_log"].weight, DType.FP32), "exp"))
    step = _plus_row(t, t.cast(a, DType.FP32, "step in fp32"), parameters["linear_attn.dt_bias"].weight)
    return mul_broadcast(t, activation(t, step, "softplus"), rate, "decay")


def _plus_row(t: Tape, a: Tensor, row: Tensor) -> Tensor:
    out = t.new(a.numel, a.dtype, "sum")
    if t.tracks(a, row):
        numel = row.numel if row.requires_grad else None

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            return g, None if numel is None else t.new(numel, g.dtype, "gradient of a row")

        t.record(out, (a, row), None, backward)
    return out


def _chunk_rule(t: Tape, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, sizes: Delta, batch: int, length: int) -> Tensor:
    """The rule over chunks: what happens inside of each at once, then a scan from one to the next."""
    dtype, heads = q.dtype, batch * sizes.value_heads
    chunks = ceil_div(length, CHUNK)
    q, k, v, beta, decay = _in_chunks(t, q, k, v, beta, decay, sizes, heads * length, heads * chunks * CHUNK)
    v_beta, k_beta = mul_broadcast(t, v, beta, "values, weighed"), mul_broadcast(t, k, beta, "keys, weighed")
    mask = t.new(CHUNK * CHUNK, DType.BOOL, "strictly upper triangle")
    cum = _cumulated(t, decay)
    square = heads * chunks * CHUNK * CHUNK
    pairwise = activation_of_result(t, masked(t, _differences(t, cum, square), mask), "exp")
    system = mul(t, _product(t, k_beta, k, square), pairwise, "triangular system")
    within = mul(t, _product(t, q, k, square), pairwise, "scores inside chunks")
    decayed = mul_broadcast(t, k_beta, activation_of_result(t, cum, "exp"), "decayed keys")
    new_values, reads = _solved(t, system, v_beta), _solved(t, system, decayed)
    moved = [q, k]
    del q, k  # the scan gives them new values
    core = _scanned(t, moved, within, new_values, reads, cum, sizes, heads, chunks)
    if chunks * CHUNK != length:
        core = part(t, core, heads * length * sizes.value_dim)
    return t.cast(core, dtype, "output of the rule, cast") if dtype is not DType.FP32 else copy(t, core)


def _in_chunks(
    t: Tape, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, sizes: Delta, given: int, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Keys and queries for each value head, all in fp32, normalised and padded from `given` rows of all heads to whole chunks."""
    groups = sizes.value_heads // sizes.key_heads
    q, k = repeat(t, q, groups), repeat(t, k, groups)
    wide = [t.cast(x, DType.FP32, "rule in fp32") for x in (q, k, v, beta, decay)]
    q, k, v, beta, decay = wide
    del wide
    q, k = _l2norm(t, q, given), _l2norm(t, k, given)
    q = scale(t, q, "scaled queries")
    padded = [_padded(t, x, rows * width) for x, width in ((q, sizes.key_dim), (k, sizes.key_dim), (v, sizes.value_dim))]
    q, k, v = padded
    padded = [_padded(t, x, rows) for x in (beta, decay)]
    return q, k, v, padded[0], padded[1]


def _scanned(
    t: Tape, moved: list[Tensor], within: Tensor, new_values: Tensor, reads: Tensor, cum: Tensor, sizes: Delta, heads: int, chunks: int
) -> Tensor:
    """From chunk to chunk with a recurrent state; `moved` holds queries and keys, which nobody else does."""
    bundle = ceil_div(chunks, MOST_TURNS)
    state = t.new(bundle * heads * sizes.key_dim * sizes.value_dim, DType.FP32, "recurrent state")
    core = t.new(new_values.numel, DType.FP32, "output of the rule")
    k, q = moved.pop(), moved.pop()
    q = mul_broadcast(t, q, activation_of_result(t, cum, "exp"), "decayed queries")
    k = mul_broadcast(t, k, activation_of_result(t, _below_last(t, cum, heads * chunks), "exp"), "decayed keys")
    chunk_decay = activation_of_result(t, part(t, cum, heads * chunks), "exp")
    done = 0
    while done < chunks:  # compared, so that a recording of the step knows how many turns it holds
        now = smaller(bundle, chunks - done)
        done = done + now
        keys, values, scores = (x.numel // chunks * now for x in (k, new_values, within))
        new = subtract(t, part(t, new_values, values), _product(t, part(t, reads, keys), state, values))
        across = _product(t, part(t, q, keys), state, values)
        inside = _product(t, part(t, within, scores), new, values)
        core = written(t, core, add(t, across, inside))
        before, t.grad_enabled = t.grad_enabled, t.grad_enabled and done < chunks  # nobody reads the last state: its graph dies
        decayed_state = mul_broadcast(t, state, part(t, chunk_decay, heads * now))
        update = _product(t, part(t, k, keys), new, state.numel)
        state = add(t, decayed_state, update, "recurrent state")
        t.grad_enabled = before
        del decayed_state, update
    del state
    return copy(t, core, "output of the rule, in rows")


def _l2norm(t: Tape, x: Tensor, rows: int) -> Tensor:
    """x * rsqrt(sum(x * x) + eps)."""
    inverse = rsqrt(t, add_constant(t, _row_total(t, mul(t, x, x), rows)))
    return mul_broadcast(t, x, inverse, "normalised")


def _row_total(t: Tape, a: Tensor, rows: int) -> Tensor:
    """a.sum(-1, keepdim=True): its backward is a broadcast view."""
    out = t.new(rows, a.dtype, "sum of rows")
    if t.tracks(a):
        numel = a.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            return (Tensor(g.storage, numel, g.dtype),)

        t.record(out, (a,), None, backward)
    return out


def _padded(t: Tape, x: Tensor, numel: int) -> Tensor:
    """F.pad to whole chunks: a copy each way, even where nothing is added."""
    out = t.new(numel, x.dtype, "padded")
    if t.tracks(x):
        given = x.numel
        t.record(out, (x,), None, lambda t, grads, saved: (t.new(given, _dtype_of(grads), "gradient of padding"),))
    return out


def _dtype_of(grads: Grads) -> DType:
    """The type of the first gradient."""
    assert grads[0] is not None
    return grads[0].dtype


def _cumulated(t: Tape, a: Tensor) -> Tensor:
    """cumsum: its backward reverses, sums up and reverses again."""
    out = t.new(a.numel, a.dtype, "cumulated decay")
    if t.tracks(a):
        numel = a.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            flipped = t.new(numel, _dtype_of(grads), "reversed gradient")
            total = t.new(numel, _dtype_of(grads), "cumulated gradient")
            del flipped
            return (t.new(total.numel, total.dtype, "gradient of decay"),)

        t.record(out, (a,), None, backward)
    return out


def _differences(t: Tape, a: Tensor, numel: int) -> Tensor:
    """a[..., None] - a[..., None, :]: each gradient is summed over the other's places."""
    out = t.new(numel, a.dtype, "pairwise differences")
    if t.tracks(a):
        rows = a.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            negated = t.new(numel, _dtype_of(grads), "negated gradient")
            first = t.new(rows, negated.dtype, "gradient of decay")
            return first, t.new(rows, negated.dtype, "gradient of decay")

        t.record(out, (a, a), None, backward)
    return out


def _below_last(t: Tape, a: Tensor, rows: int) -> Tensor:
    """a[..., -1:] - a."""
    last = part(t, a, rows)
    out = t.new(a.numel, a.dtype, "decay to the chunk's end")
    if t.tracks(a):
        numel = a.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            negated = t.new(numel, _dtype_of(grads), "negated gradient")
            return t.new(rows, negated.dtype, "gradient of the last"), negated

        t.record(out, (last, a), None, backward)
    return out


def _product(t: Tape, a: Tensor, b: Tensor, numel: int) -> Tensor:
    """a @ b, which autocast lowers; each is saved if the other needs a gradient."""
    a, b = t.lower(a), t.lower(b)
    tracked = t.tracks(a, b)
    saved = t.save(a if b.requires_grad else None, b if a.requires_grad else None) if tracked else None
    out = t.new(numel, a.dtype, "product")
    if tracked:
        wanted = [x.numel if x.requires_grad else None for x in (a, b)]

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            return [None if n is None else t.new(n, _dtype_of(grads), "gradient of a product") for n in wanted]

        t.record(out, (a, b), saved, backward)
    return out


def _solved(t: Tape, system: Tensor, b: Tensor) -> Tensor:
    """
    linalg.solve_triangular: keeps the system and the result.

    Source:
        torch@2.13.0, torch/csrc/autograd/FunctionsManual.cpp, linalg_solve_triangular_backward.
    """
    tracked = t.tracks(system, b)
    out = t.new(b.numel, b.dtype, "solution")
    if tracked:
        square, numel = system.numel if system.requires_grad else None, b.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            of_b = t.new(numel, _dtype_of(grads), "gradient of a solution")
            if square is None:
                return None, of_b
            raw = t.new(square, of_b.dtype, "gradient of a system")
            negated = t.new(square, of_b.dtype, "gradient of a system")
            del raw
            of_system = t.new(square, of_b.dtype, "gradient of a triangular system")
            del negated
            return of_system, of_b

        t.record(out, (system, b), t.save(system, out), backward)
    return out
