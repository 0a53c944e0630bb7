"""
Routed experts as transformers runs them by default: rows sorted by expert, one grouped product for all experts.

Shapes: T tokens, k experts a token, R = T * k rows; E experts of inner width f; residual stream d. Grouped products work on all R
rows whatever the routing, so that routing decides nothing here: how many rows an expert gets (a balanced T * k / E, or all) moves no
byte. Index vectors of a few bytes a row that CUDA's sort and scatter use inside themselves are not counted.

Source:
    transformers@5.23.0, integrations/moe.py, grouped_mm_experts_forward; the default: modeling_utils.py,
    get_correct_experts_implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.architecture.decoder import Mlp, Moe
from planner.dtypes import DType, promote
from planner.operations.elementwise import act_fn, activation_of_result, add, add_constant, clamp, mul, part, scale, split
from planner.operations.indexing import row_sum, take
from planner.operations.linear import Lora, Parameter, product
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor
from planner.value import Value


class Context(Value, eq=False):
    """
    What a routed block needs beside its input.

    Attributes:
        tokens: T.
        parameters: The layer's bare parameters by their paths.
        linear: Runs a linear of the layer by its path.
        dense: Runs a dense block.
        has_grouped_products: Whether the card has torch's grouped product (compute capability 8.0 on).
    """

    tokens: int
    parameters: dict[str, Parameter]
    linear: Callable[[str, Tensor], Tensor]
    dense: Callable[[Tensor, Mlp], Tensor]
    has_grouped_products: bool = True


def experts(t: Tape, x: Tensor, indices: Tensor, scores: Tensor, block: Moe, context: Context) -> Tensor:
    """
    The routed experts: x [T, d], indices and scores [T, k] -> [T, d].

    Everything here lives until the function returns, as the real one's locals do.
    """
    gate_up, down = context.parameters[block.gate_up], context.parameters[block.down]
    wrapped = [(p, _wrap(t, p, p.lora)) for p in (down, gate_up) if p.lora is not None]
    rows = context.tokens * block.top_k
    dtype = x.dtype
    sorted_ids, order = t.new(rows, DType.INT64, "sorted expert ids"), t.new(rows, DType.INT64, "order of rows")
    places = t.new(rows, DType.INT64, "tokens of rows")
    width = x.numel // context.tokens
    gathered = take(t, x, places, rows * width, "rows by expert")
    weights = take(t, scores, order, rows, "weights by expert")
    ids = t.new(rows, DType.INT32, "expert ids")
    counts = t.new(block.experts, DType.INT32, "rows of experts")
    offsets = t.new(block.experts, DType.INT32, "offsets of experts")

    def grouped(x: Tensor, p: Parameter, biases: Tensor | None) -> Tensor:
        weight = next((_folded(t, q, factors) for q, factors in wrapped if q is p), p.weight)
        cached.append(weight)
        numel = rows * (p.inputs if block.transposed else p.outputs)
        return _grouped_product(t, x, weight, biases, offsets, numel, native=context.has_grouped_products)

    cached: list[Tensor] = []  # parametrize.cached(): what is materialised stays until the block is left
    biases = _biases(t, context, block.gate_up_bias, sorted_ids)
    out = grouped(gathered, gate_up, biases)
    out = _GATES[block.gating](t, out, block.act)
    biases = _biases(t, context, block.down_bias, sorted_ids)
    out = grouped(out, down, biases)
    weighted = _weigh(t, out, weights)
    back = t.new(rows, DType.INT64, "places of rows")
    arange = t.new(rows, DType.INT64, "row numbers")
    del arange
    weighted = take(t, weighted, back, weighted.numel, "rows by token")
    total = row_sum(t, weighted, context.tokens * width)
    total = t.cast(total, dtype, "sum of experts")
    del ids, counts
    return total


def _grouped_product(t: Tape, x: Tensor, weight: Tensor, bias: Tensor | None, offsets: Tensor, numel: int, *, native: bool) -> Tensor:
    """
    One product for all experts; autocast does not know it, and x is cast to the weight's dtype.

    Before compute capability 8.0 it is a custom function in Python, which saves both operands and makes both gradients, also that
    of a frozen stack.

    Source:
        transformers@5.23.0, integrations/moe.py, _grouped_linear, _can_use_grouped_mm, _grouped_mm_fallback_backward; torch@2.13.0,
        tools/autograd/derivatives.yaml, _grouped_mm.
    """
    x = t.cast(x, weight.dtype, "rows in the experts' dtype")
    tracked = t.tracks(x, weight)
    saved = None
    if tracked:
        saved = t.save(x if weight.requires_grad or not native else None, weight if x.requires_grad or not native else None, offsets)
    out = t.new(numel, x.dtype, "output of experts")
    if tracked:
        x_numel = x.numel if x.requires_grad or not native else None
        w_numel = weight.numel if weight.requires_grad or not native else None

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            if native:
                dw = None if w_numel is None else t.new(w_numel, g.dtype, "gradient of experts")
                dx = None if x_numel is None else t.new(x_numel, g.dtype, "gradient of rows")
            else:
                dx = None if x_numel is None else t.new(x_numel, g.dtype, "gradient of rows")
                dw = None if w_numel is None else t.new(w_numel, g.dtype, "gradient of experts")
            return dx, dw

        t.record(out, (x, weight), saved, backward)
    if bias is not None and t.tracks(out, bias):
        before, out = out, Tensor(out.storage, out.numel, out.dtype)
        t.record(out, (before, bias), None, lambda t, grads, saved: (grads[0], grads[0]))
    return out


def _biases(t: Tape, context: Context, name: str, sorted_ids: Tensor) -> Tensor | None:
    """The bias of each row's expert."""
    if not name:
        return None
    bias = context.parameters[name]
    return take(t, bias.weight, sorted_ids, sorted_ids.numel * bias.inputs, "biases of rows")


def _gate_halves(t: Tape, both: Tensor, act: str) -> Tensor:
    """act(gate) * up, from the two halves of one product."""
    gate, up = split(t, both, (both.numel // 2, both.numel // 2))
    return mul(t, act_fn(t, gate, act), up, "gated")


def _gate_gpt_oss(t: Tape, both: Tensor, act: str) -> Tensor:
    """
    (clamp(up) + 1) * gate * sigmoid(alpha * gate), every other column being a gate.

    Source:
        transformers@5.23.0, models/gpt_oss/modeling_gpt_oss.py, GptOssExperts._apply_gate.
    """
    gate, up = part(t, both, both.numel // 2), part(t, both, both.numel // 2)
    gate = clamp(t, gate, bounds=1)
    up = clamp(t, up, bounds=2)
    glu = mul(t, gate, activation_of_result(t, scale(t, gate), "sigmoid"), "gate")
    return mul(t, add_constant(t, up), glu, "gated")


_GATES: dict[str, Callable[[Tape, Tensor, str], Tensor]] = {"halves": _gate_halves, "gpt_oss": _gate_gpt_oss}


def _weigh(t: Tape, x: Tensor, weights: Tensor) -> Tensor:
    """
    Rows times their weights: in fp32 where the weights are. Both products of backward stand together, and the first is cast before
    the second is summed.
    """
    tracked = t.tracks(x, weights)
    saved = t.save(weights if x.requires_grad else None, x if weights.requires_grad else None) if tracked else None
    out = t.new(x.numel, promote(x.dtype, weights.dtype), "weighted rows")
    if tracked:
        given, rows = x.dtype, weights.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            w, x = saved
            dx = None if w is None else t.new(g.numel, g.dtype, "gradient of rows")
            if x is None:
                return dx, None
            full = t.new(g.numel, g.dtype, "gradient of weights by element")
            if dx is not None:
                dx = t.cast(dx, given, "gradient of rows, cast")
            return dx, t.new(rows, full.dtype, "gradient of weights")

        t.record(out, (x, weights), saved, backward)
    return out


def _wrap(t: Tape, p: Parameter, lora: Lora) -> tuple[Tensor, Tensor]:
    """
    lora.ParamWrapper around stacked experts: the two factors in the experts' dtype. Registering the parametrisation checks itself by
    folding once, and drops the result.

    Source:
        peft@0.21.2, tuners/lora/layer.py, ParamWrapper._activate_lora and get_delta_factors; torch@2.13.0, nn/utils/parametrize.py,
        ParametrizationList.__init__.
    """
    factors = (
        t.cast(_permuted(t, lora.b), p.weight.dtype, "factor of experts"),
        t.cast(lora.a, p.weight.dtype, "factor of experts"),
    )
    t.grad_enabled, before = False, t.grad_enabled
    _folded(t, p, factors)
    t.grad_enabled = before
    return factors


def _permuted(t: Tape, b: Tensor) -> Tensor:
    """B [m, r * E] seen as [E, m, r]: a view, whose gradient is copied back into B's order."""
    out = Tensor(b.storage, b.numel, b.dtype)
    if t.tracks(b):
        numel = b.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            return (t.new(numel, g.dtype, "gradient of a factor, reordered"),)

        t.record(out, (b,), None, backward)
    return out


def _folded(t: Tape, p: Parameter, factors: tuple[Tensor, Tensor]) -> Tensor:
    """
    W + scaling * B A of every expert in one baddbmm, outside autocast. cuBLAS reads no operand without a unit stride, so B is copied
    inside the kernel's wrapper, in forward and again in backward.

    Source:
        peft@0.21.2, tuners/lora/layer.py, _LoraFactorsProxy.forward; torch@2.13.0, aten/src/ATen/native/cuda/Blas.cpp,
        prepare_batch_matrix_for_cublas.
    """
    b, a = factors
    tracked = t.tracks(b, a)
    saved = t.save(b, a) if tracked else None
    out = t.new(p.weight.numel, p.weight.dtype, "experts with their adapter")
    t.scratch("copied factor", b.numel * b.dtype.num_bytes)
    if tracked:
        sizes = b.numel, a.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            raw = t.new(sizes[0], g.dtype, "gradient of a factor")
            db = t.new(sizes[0], g.dtype, "gradient of a factor, scaled")
            del raw
            raw = t.new(sizes[1], g.dtype, "gradient of a factor")
            t.scratch("copied factor", sizes[0] * g.dtype.num_bytes)
            da = t.new(sizes[1], g.dtype, "gradient of a factor, scaled")
            del raw
            return db, da

        t.record(out, (b, a), saved, backward)
    return out


def read(t: Tape, p: Parameter) -> tuple[Tensor, Tensor | None]:
    """
    A router's weight as its forward reads it, with the delta that PEFT adds and holds until the forward is over.

    Source:
        peft@0.21.2, tuners/lora/layer.py, ParamWrapper.get_delta_weight (one matrix), _LoraParameterProxy.forward.
    """
    if p.lora is None:
        return p.weight, None
    delta = scale(t, product(t, p.lora.b, p.lora.a, None, p.lora.rank, p.inputs, "delta of a router"))
    delta = t.cast(delta, p.weight.dtype)
    t.grad_enabled, before = False, t.grad_enabled
    add(t, p.weight, delta)  # the parametrisation's own check
    t.grad_enabled = before
    return add(t, p.weight, delta, "router with its adapter"), delta
