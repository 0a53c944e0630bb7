"""
Routers: from hidden states [T, d] to logits [T, E], weights [T, k] and expert indices [T, k]; one function a way of routing.

A router's logits are bound to a name in the block and live as long as it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planner.architecture.decoder import Moe
from planner.dtypes import DType
from planner.operations.attention import plain_softmax, softmax
from planner.operations.elementwise import activation_of_result, concatenate, scale
from planner.operations.experts import Context, read
from planner.operations.indexing import best, gather, masked, normalised, scatter_constant, top_k
from planner.operations.linear import Parameter, product
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor

Routed = tuple[Tensor, Tensor, Tensor]


def _logits(t: Tape, x: Tensor, p: Parameter, bias: Parameter | None = None) -> tuple[Tensor, Tensor | None]:
    weight, held = read(t, p)
    return product(t, x, weight, bias.weight if bias else None, p.inputs, p.outputs, "router logits"), held


def _mixtral(t: Tape, x: Tensor, block: Moe, context: Context) -> Routed:
    """
    Softmax of the logits in fp32, then the best, normalised; weights stay in fp32.

    Source:
        transformers@5.23.0, models/mixtral/modeling_mixtral.py, MixtralTopKRouter.forward.
    """
    logits, held = _logits(t, x, context.parameters[block.router])
    probs = softmax(t, t.cast(logits, DType.FP32, "logits in fp32"), DType.FP32)
    values, indices = top_k(t, probs, context.tokens * block.top_k)
    return logits, normalised(t, values, context.tokens), indices


def _softmax_then_best(t: Tape, x: Tensor, block: Moe, context: Context) -> Routed:
    """
    Softmax in fp32, then the best, normalised where the config says so; weights return to the logits' dtype.

    Source:
        transformers@5.23.0, models/qwen3_moe/modeling_qwen3_moe.py, Qwen3MoeTopKRouter.forward, and its copies.
    """
    logits, held = _logits(t, x, context.parameters[block.router])
    probs = softmax(t, logits, DType.FP32)
    values, indices = top_k(t, probs, context.tokens * block.top_k)
    if block.normalised:
        values = normalised(t, values, context.tokens)
    return logits, t.cast(values, logits.dtype, "routing weights"), indices


def _granitemoe(t: Tape, x: Tensor, block: Moe, context: Context) -> Routed:
    """
    The best logits, in fp32, then softmax over them; weights take the hidden states' dtype.

    Source:
        transformers@5.23.0, models/granitemoe/modeling_granitemoe.py, GraniteMoeTopKRouter.forward.
    """
    logits, held = _logits(t, x, context.parameters[block.router])
    logits = t.cast(logits, DType.FP32, "logits in fp32")
    values, indices = top_k(t, logits, context.tokens * block.top_k)
    return logits, t.cast(softmax(t, values, DType.FP32), x.dtype, "routing weights"), indices


def _gpt_oss(t: Tape, x: Tensor, block: Moe, context: Context) -> Routed:
    """
    The best logits, then softmax over them, in their own dtype.

    Source:
        transformers@5.23.0, models/gpt_oss/modeling_gpt_oss.py, GptOssTopKRouter.forward.
    """
    weight = context.parameters[block.router]
    bias = context.parameters[block.router.removesuffix("weight") + "bias"]
    logits, held = _logits(t, x, weight, bias)
    values, indices = top_k(t, logits, context.tokens * block.top_k)
    return logits, softmax(t, values, values.dtype), indices


def _minimax_m2(t: Tape, x: Tensor, block: Moe, context: Context) -> Routed:
    """
    Sigmoid in fp32; a bias chooses, but does not weigh.

    Source:
        transformers@5.23.0, models/minimax_m2/modeling_minimax_m2.py, MiniMaxM2TopKRouter.forward.
    """
    weight, held = read(t, context.parameters[block.router])
    p = context.parameters[block.router]
    logits = product(t, t.cast(x, weight.dtype), weight, None, p.inputs, p.outputs, "router logits")
    scores = activation_of_result(t, t.cast(logits, DType.FP32, "logits in fp32"), "sigmoid")
    choice = t.new(scores.numel, DType.FP32, "scores to choose by")
    indices = best(t, choice, context.tokens * block.top_k)
    return logits, normalised(t, gather(t, scores, indices, "routing weights"), context.tokens), indices


def _in_groups(t: Tape, scores: Tensor, block: Moe, tokens: int, candidates: int) -> tuple[Tensor, ...]:
    """Which experts are open to a token: those of its best groups. What keeps a name; the mask [T, E] is the last."""
    found = t.new(tokens * block.groups * candidates, scores.dtype, "best of each group")
    places = t.new(tokens * block.groups * candidates, DType.INT64, "their places")
    del places
    groups = found if candidates == 1 else t.new(tokens * block.groups, DType.FP32, "scores of groups")
    del found
    chosen = best(t, groups, tokens * block.open_groups)
    mask = t.new(groups.numel, groups.dtype, "open groups")
    spread = mask if block.groups == 1 else t.new(scores.numel, mask.dtype, "open experts")
    return groups, chosen, mask, spread


def _closed(t: Tape, spread: Tensor, numel: int) -> Tensor:
    """~mask.bool()."""
    is_open = t.new(spread.numel, DType.BOOL, "open experts")
    return t.new(numel if spread.numel == numel else spread.numel, DType.BOOL, "closed experts")


def _deepseek_v3(t: Tape, x: Tensor, block: Moe, context: Context) -> Routed:
    """
    A product of fp32 copies, sigmoid, the best experts of the best groups by scores with a bias; the scores weigh.

    Source:
        transformers@5.23.0, models/deepseek_v3/modeling_deepseek_v3.py, DeepseekV3TopkRouter.forward; models/glm4_moe.
    """
    logits = _logits_in_fp32(t, x, context.parameters[block.router])
    scores = activation_of_result(t, logits, "sigmoid")
    choice = t.new(scores.numel, DType.FP32, "scores to choose by")
    groups = _in_groups(t, choice, block, context.tokens, 2)
    closed = _closed(t, groups[-1], choice.numel)
    choice = t.new(choice.numel, choice.dtype, "scores of open experts")
    del closed
    indices = best(t, choice, context.tokens * block.top_k)
    weights = gather(t, scores, indices, "routing weights")
    if block.normalised:
        weights = normalised(t, weights, context.tokens, stabilised=True)
    del groups
    return logits, scale(t, weights, "scaled routing weights"), indices


def _deepseek_v2(t: Tape, x: Tensor, block: Moe, context: Context) -> Routed:
    """
    A product of fp32 copies, softmax, the best experts (of the best groups).

    Source:
        transformers@5.23.0, models/deepseek_v2/modeling_deepseek_v2.py, DeepseekV2TopkRouter.forward.
    """
    logits = _logits_in_fp32(t, x, context.parameters[block.router])
    scores = softmax(t, logits, DType.FP32)
    groups: tuple[Tensor, ...] = ()
    if block.groups > 1:
        groups = _in_groups(t, scores, block, context.tokens, 1)
        scores = masked(t, scores, _closed(t, groups[-1], scores.numel))
    values, indices = top_k(t, scores, context.tokens * block.top_k)
    del groups
    return logits, scale(t, values, "scaled routing weights"), indices


def _logits_in_fp32(t: Tape, x: Tensor, p: Parameter) -> Tensor:
    """F.linear(x.float(), weight.float()), which autocast casts down again."""
    weight, held = read(t, p)
    x, weight = t.cast(x, DType.FP32, "router input in fp32"), t.cast(weight, DType.FP32, "router in fp32")
    return product(t, x, weight, None, p.inputs, p.outputs, "router logits")


def _sparsemixer(t: Tape, x: Tensor, block: Moe, context: Context) -> Routed:
    """
    Two experts, sampled one after the other; only a hand-written function has a gradient.

    Source:
        transformers@5.23.0, models/phimoe/modeling_phimoe.py, PhimoeTopKRouter.forward, sparsemixer.
    """
    logits = context.linear(block.router, x)
    first, chosen, held = _sampled(t, logits, logits, context.tokens)
    rest = scatter_constant(t, logits, chosen, "scores of the other experts")
    second, other, also_held = _sampled(t, logits, rest, context.tokens)
    multiplier = concatenate(t, (first, second), "routing weights")
    indices = t.new(2 * context.tokens, DType.INT64, "chosen experts")
    del held, also_held
    return logits, multiplier, indices


def _sampled(t: Tape, logits: Tensor, scores: Tensor, tokens: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """One sampled expert a token: its multiplier [T, 1], its index [T, 1], and what else keeps a name."""
    held: tuple[Tensor, ...]
    threshold, place = t.new(tokens, scores.dtype, "highest score"), t.new(tokens, DType.INT64, "its place")
    positive = t.new(scores.numel, scores.dtype, "absolute scores")
    factor = t.new(scores.numel, scores.dtype, "factor")
    del positive
    gap = t.new(scores.numel, scores.dtype, "gap")
    relative = t.new(scores.numel, scores.dtype, "relative gap")
    del gap
    far = t.new(scores.numel, DType.BOOL, "far from the best")
    del relative, threshold
    gates = masked(t, scores, far)
    noise = t.new(scores.numel, scores.dtype, "noise")
    log = t.new(scores.numel, scores.dtype, "logarithm of noise")
    del noise
    noisy = t.new(scores.numel, scores.dtype, "noisy scores")
    del log
    value, chosen = t.new(tokens, scores.dtype, "highest noisy score"), t.new(tokens, DType.INT64, "sampled expert")
    del noisy, value
    gates = plain_softmax(t, gates)
    share = gather(t, gates, chosen, "share of the sampled expert")
    top, top_place = t.new(tokens, gates.dtype, "highest share"), t.new(tokens, DType.INT64, "its place")
    midpoint = t.new(tokens, gates.dtype, "midpoint mask")
    multiplier = _multiplier(t, logits, share, chosen, gates)
    held = (place, factor, far, gates, share, top, top_place, midpoint)
    return multiplier, chosen, held


def _multiplier(t: Tape, logits: Tensor, share: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
    """
    Source:
        transformers@5.23.0, models/phimoe/modeling_phimoe.py, PhimoeMultiplier.
    """
    out = t.new(share.numel, share.dtype, "multiplier")
    if t.tracks(logits):
        numel = gates.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            return (t.new(numel, g.dtype, "gradient of scores"), None, None)

        t.record(out, (logits, share, gates), t.save(share, chosen, gates), backward)
    return out


ROUTERS: dict[str, Callable[[Tape, Tensor, Moe, Context], Routed]] = {
    "mixtral": _mixtral,
    "softmax": _softmax_then_best,
    "granitemoe": _granitemoe,
    "gpt_oss": _gpt_oss,
    "minimax_m2": _minimax_m2,
    "deepseek_v3": _deepseek_v3,
    "deepseek_v2": _deepseek_v2,
    "sparsemixer": _sparsemixer,
}
