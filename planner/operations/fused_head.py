"""
Heads that are one with their loss and never hold the logits whole: TRL's, and Liger's.

Shapes: T tokens, of which N are scored; d hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.dtypes import DType
from planner.formulas.blocks import smaller
from planner.ledger import Category
from planner.operations.elementwise import part
from planner.operations.linear import Linear
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor
from planner.units import ceil_div, next_power_of_two
from planner.value import NamedTuple

TILE_TOKENS = 4096
TILE_VOCABULARY = 32768
"""Source: trl@1.16.0, kernels/chunked_logprob.py TOKEN_CHUNK_SIZE; trainer/utils.py _CHUNKED_LOGPROB_CHUNK_SIZE."""


def chunked_loss(t: Tape, hidden: Tensor, head: Linear, *, sequences: int, metrics: bool) -> Tensor:
    """
    TRL's fused head: log-probabilities tile by tile. Every position but each sequence's last is scored.

    Args:
        t: The tape.
        hidden: The last hidden states [T, d].
        head: The language-model head, of which the adapter is not looked at.
        sequences: B.
        metrics: Whether entropy and top-1 hits are computed beside, as SFTTrainer asks.

    Source:
        trl@1.16.0, trainer/utils.py, add_fused_lm_head, `_fused_forward`; trainer/sft_trainer.py, compute_loss.
    """
    tokens = hidden.numel // head.inputs
    scored = tokens - sequences
    mask = t.new(scored, DType.BOOL, "mask of scored positions", Category.INPUT)
    log_probs, entropy, hits = _log_probs(t, _scored(t, hidden, mask, head.inputs), head, metrics=metrics)
    whole = _scatter(t, log_probs, mask)
    if entropy is not None and hits is not None:
        also = _scatter(t, entropy.detach(), mask), _scatter(t, hits, mask)
        negated = t.new(scored, DType.FP32, "token losses")
        del also, negated
    return _negative_sum(t, whole)


def _scored(t: Tape, x: Tensor, mask: Tensor, width: int) -> Tensor:
    """
    hidden[:, :-1][mask]: a copy, which keeps the mask. On CUDA its backward scatters into zeros.

    Source:
        torch@2.13.0, tools/autograd/derivatives.yaml, index.Tensor and slice; native/TensorAdvancedIndexing.cpp: on CUDA a
        boolean mask becomes two int64 vectors meanwhile.
    """
    numel = mask.numel * width
    x = part(t, x, numel)
    t.scratch("indices of scored positions", 2 * DType.INT64.num_bytes * mask.numel)
    out = t.new(numel, x.dtype, "scored hidden states")
    if t.tracks(x):
        dtype = x.dtype
        t.record(out, (x,), t.save(mask), lambda t, grads, saved: (t.new(numel, dtype, "scattered gradient"),))
    return out


class _Tiles(NamedTuple):
    """Elements of the tiles of an operand that is cast to the compute dtype: the first, the one after it, the last. Views are 0."""

    first: int
    second: int
    last: int


def _tiles(rows: int, limit: int, width: int, *, views: bool) -> _Tiles:
    if views:
        return _Tiles(0, 0, 0)
    first = smaller(rows, limit)
    return _Tiles(first * width, smaller(rows - first, limit) * width, ((rows - 1) % limit + 1) * width)


def _log_probs(t: Tape, hidden: Tensor, head: Linear, *, metrics: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """
    The function that folds tile after tile of [4096, 32768] logits into statistics of each scored position.

    Source:
        trl@1.16.0, kernels/chunked_logprob.py, ChunkedLogProbFunction.forward (on CUDA, with Triton).
    """
    weight, bias, width = head.weight, head.bias, head.inputs
    scored, compute = hidden.numel // width, t.autocast or hidden.dtype
    targets = t.new(scored, DType.INT64, "scored labels", Category.INPUT)
    statistics = [t.new(scored, DType.FP32, "running statistics") for _ in range(7)]
    tile = t.new(smaller(scored, TILE_TOKENS) * TILE_VOCABULARY, compute, "tile of logits", Category.LOGITS)
    rows = _tiles(scored, TILE_TOKENS, width, views=hidden.dtype is compute)
    slabs = _tiles(weight.numel // width, TILE_VOCABULARY, width, views=weight.dtype is compute)
    _together(t, compute, rows.first, slabs.first)
    t.multiplies()
    _together(t, compute, rows.first, rows.second)
    held = t.new(rows.last, compute, "tile of hidden states")
    log = t.new(scored, DType.FP32, "logarithm")
    log_z = t.new(scored, DType.FP32, "log-sum-exp")
    del log
    log_probs = t.new(scored, DType.FP32, "log-probabilities")
    entropy = hits = None
    if metrics:
        ratio = t.new(scored, DType.FP32, "ratio")
        entropy = t.new(scored, DType.FP32, "entropy")
        del ratio
        compared = t.new(scored, DType.BOOL, "comparison"), t.new(scored, DType.BOOL, "comparison")
        hits = t.new(scored, DType.BOOL, "top-1 hits")
        del compared
    if t.tracks(hidden, weight, bias):
        run = _LogProbsBackward(hidden, weight, bias, compute, rows, slabs)
        t.record(log_probs, (hidden, weight, bias), t.save(hidden, weight, bias, targets, log_z, entropy), run)
    del statistics, tile, held
    return log_probs, entropy, hits


class _LogProbsBackward:
    """
    Every tile again, turned into its gradient in place. A tile's name holds it while the next is made; the sums are kept in fp32 and
    cast while all else is still alive.

    Source:
        trl@1.16.0, kernels/chunked_logprob.py, ChunkedLogProbFunction.backward, and _addmm_fp32, which makes nothing on CUDA.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, compute: DType, rows: _Tiles, slabs: _Tiles) -> None:
        self.results = [(x.numel, x.dtype) if x is not None and x.requires_grad else None for x in (hidden, weight, bias)]
        self.compute, self.rows, self.slabs = compute, rows, slabs

    def __call__(self, t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
        compute, rows, slabs = self.compute, self.rows, self.slabs
        log_z = saved[4]
        assert log_z is not None
        sums = [None if r is None else t.new(r[0], DType.FP32, "fp32 gradient of the head", Category.LOGITS) for r in self.results]
        tile = t.new(smaller(log_z.numel, TILE_TOKENS) * TILE_VOCABULARY, compute, "tile of logits", Category.LOGITS)
        _together(t, compute, rows.first, slabs.first, slabs.second)
        t.multiplies()
        again = 1 * (log_z.numel > TILE_TOKENS)
        _together(t, compute, again * rows.first, rows.second, again * slabs.last)
        _together(t, compute, rows.second, again * slabs.last, again * slabs.first)
        held = t.new(rows.last, compute, "tile of hidden states"), t.new(slabs.last, compute, "tile of the head's weight")
        out = [None if s is None or r is None else t.cast(s, r[1], "gradient of the head") for s, r in zip(sums, self.results, strict=True)]
        del sums, tile, held
        return out


def _together(t: Tape, dtype: DType, *numels: int) -> None:
    """Tiles that are alive at one moment of a loop."""
    held = [t.new(numel, dtype, "tiles of the head's operands", Category.TEMPORARY) for numel in numels]
    del held


def _scatter(t: Tape, x: Tensor, mask: Tensor) -> Tensor:
    """
    x.new_zeros(mask.shape).masked_scatter(mask, x); backward picks the gradient's masked elements.

    Source:
        torch@2.13.0, tools/autograd/derivatives.yaml, masked_scatter; native/cuda/IndexKernel.cpp: its prefix sum of the mask.
    """
    zeros = t.new(mask.numel, x.dtype, "zeros")
    out = t.new(mask.numel, x.dtype, "by position")
    t.scratch("prefix sum of the mask", DType.INT64.num_bytes * mask.numel)
    del zeros
    if t.tracks(x):
        numel, dtype = x.numel, x.dtype
        t.record(out, (x,), t.save(mask), lambda t, grads, saved: (t.new(numel, dtype, "gradient of scored positions"),))
    return out


def _negative_sum(t: Tape, x: Tensor) -> Tensor:
    """(-x).sum() / count: a gradient of x's size for the negation; that of the sum is a view."""
    negated = t.new(x.numel, x.dtype, "token losses")
    if t.tracks(x):
        numel, dtype = x.numel, x.dtype
        t.record(negated, (x,), None, lambda t, grads, saved: (t.new(numel, dtype, "gradient of token losses"),))
    out = t.new(1, x.dtype, "loss")
    if t.tracks(negated):
        t.record(out, (negated,), None, lambda t, grads, saved: (t.new(1, DType.FP32, "gradient of the sum"),))
    return out


def liger_loss(t: Tape, hidden: Tensor, head: Linear, *, sequences: int, adds_in_place: bool) -> Tensor:
    """
    Liger's fused linear cross entropy alone, none of its other kernels: the gradients are made in forward, a chunk of rows at a time.

    Nothing of [T, V] exists: a chunk of logits has about as many elements as the hidden states. Bias and adapter of the head are not
    looked at; the function reads `lm_head.weight`.

    Args:
        t: The tape.
        hidden: The last hidden states [T, d].
        head: The language-model head.
        sequences: B.
        adds_in_place: The head's gradient is accumulated by the product itself: compute capability 8.0 or more.

    Source:
        liger-kernel@0.8.5, transformers/model/loss_utils.py LigerForCausalLMLoss; ops/fused_linear_cross_entropy.py
        fused_linear_cross_entropy_forward.
    """
    width = head.inputs
    tokens, vocab = hidden.numel // width, head.weight.numel // width
    labels = t.new(tokens + sequences, DType.INT64, "padded labels", Category.INPUT)
    shifted = t.new(tokens * (sequences > 1), DType.INT64, "shifted labels", Category.INPUT)
    if t.tracks(hidden, head.weight):
        grads = _liger_gradients(t, hidden, head.weight, width, vocab, adds_in_place=adds_in_place)
    loss = t.new(1, DType.FP32, "loss")
    if t.tracks(hidden, head.weight):
        t.record(loss, (hidden, head.weight), t.save(*grads), lambda t, _, saved: saved)
        del grads
    del labels, shifted
    return loss


def _liger_gradients(
    t: Tape, hidden: Tensor, weight: Tensor, width: int, vocab: int, *, adds_in_place: bool
) -> tuple[Tensor, Tensor | None]:
    """
    Gradients of hidden states and weight, in their own dtypes.

    Where both are in the dtype of the products, all products write into buffers; else each is made and copied, and autocast casts
    the operands, the transposed weight among them, for every chunk again.

    Source:
        liger-kernel@0.8.5, ops/fused_linear_cross_entropy.py, _can_use_mm_out and fused_linear_cross_entropy_forward.
    """
    tokens = hidden.numel // width
    compute = t.autocast or hidden.dtype
    rows = smaller(next_power_of_two(ceil_div(tokens, ceil_div(vocab, width))), tokens)
    grad_hidden = t.new(hidden.numel, hidden.dtype, "gradient of hidden states")
    grad_weight = t.new(weight.numel, weight.dtype, "gradient of the head") if weight.requires_grad else None
    losses, mask = t.new(tokens, DType.FP32, "loss of each token"), t.new(tokens, DType.BOOL, "mask of scored positions")
    writes_out = hidden.dtype is weight.dtype is compute
    for n in (rows, smaller(tokens - rows, rows)):  # a second chunk meets the copy of a trained weight that autocast keeps
        casts_rows = n * width * (hidden.dtype is not compute)
        casts_weight = weight.numel * (weight.dtype is not compute) * (n > 0)
        operands = t.new(casts_rows, compute, "autocast copy"), t.new(casts_weight, compute, "autocast copy", Category.TEMPORARY)
        logits = t.new(n * vocab, compute, "chunk of logits", Category.LOGITS)
        del operands
        if not writes_out:
            lowered = t.lower(weight)
            step = t.new(n * width, compute, "gradient of a chunk")
            del step, lowered
        if grad_weight is not None:
            again = t.new(casts_rows, compute, "autocast copy")
            if not adds_in_place or compute is DType.FP32:
                product = t.new(weight.numel * (n > 0), compute, "gradient of the head from a chunk", Category.TEMPORARY)
                del again
                high = t.cast(product, DType.FP32, "the same in fp32", Category.TEMPORARY)
                del product, high
        del logits
    del losses, mask
    return grad_hidden, grad_weight
