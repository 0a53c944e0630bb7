"""
The language-model head and its loss, by every way that the stack computes it.

Shapes: T tokens, d hidden, V vocabulary, N scored positions.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.dtypes import DType
from planner.formulas.blocks import smaller
from planner.ledger import Category
from planner.operations.elementwise import activation_of_result, copy, scale
from planner.operations.linear import Linear
from planner.operations.lora import linear
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor

TILE_TOKENS = 4096
TILE_VOCABULARY = 32768
"""Source: trl@1.16.0, kernels/chunked_logprob.py TOKEN_CHUNK_SIZE; trainer/utils.py _CHUNKED_LOGPROB_CHUNK_SIZE."""


def logits(t: Tape, hidden: Tensor, head: Linear, *, softcap: bool, scaled: bool) -> Tensor:
    """
    The head's output [T, V], scaled and capped as the family does: each a tensor of that size.

    Source:
        transformers@5.23.0, models/gemma2/modeling_gemma2.py and models/cohere/modeling_cohere.py, ForCausalLM.forward.
    """
    before, t.category = t.category, Category.LOGITS
    out = linear(t, hidden, head, "lm_head")
    if scaled:
        out = scale(t, out, "scaled logits")
    if softcap:
        out = scale(t, out, "logits / cap")
        out = activation_of_result(t, out, "tanh of logits")
        out = scale(t, out, "capped logits")
    t.category = before
    return out


def full_loss(t: Tape, given: Tensor, tokens: int, vocab: int, *, shifts_logits: bool = False) -> Tensor:
    """
    Cross entropy over materialised logits: an fp32 copy, its log-softmax (kept for backward), and a gradient of both in backward.

    Args:
        t: The tape.
        given: Logits [T, V].
        tokens: T.
        vocab: V.
        shifts_logits: Whether logits are shifted into a contiguous copy of their own (transformers before 4.49) rather than labels.

    Source:
        transformers@5.23.0, loss/loss_utils.py ForCausalLMLoss; torch@2.13.0, native/LossNLL.cpp.
    """
    before, t.category = t.category, Category.LOGITS
    fp32 = t.cast(given, DType.FP32, "logits in fp32")
    shifted = copy(t, fp32, "shifted logits") if shifts_logits else fp32
    padded = t.new(tokens + 1, DType.INT64, "padded labels", Category.INPUT)
    labels = t.new(tokens, DType.INT64, "shifted labels", Category.INPUT)
    loss = _cross_entropy(t, shifted, labels)
    del padded, fp32, shifted
    t.category = before
    return loss


def _cross_entropy(t: Tape, x: Tensor, labels: Tensor) -> Tensor:
    """log_softmax and nll_loss."""
    log_probs = t.new(x.numel, x.dtype, "log-softmax")
    if t.tracks(x):

        def log_softmax_backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            return (t.new(g.numel, g.dtype, "gradient of logits", Category.LOGITS),)

        t.record(log_probs, (x,), t.save(log_probs), log_softmax_backward)
    loss, weight = t.new(1, DType.FP32, "loss"), t.new(1, DType.FP32, "total weight")
    if t.tracks(log_probs):
        numel = x.numel

        def nll_backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            return (t.new(numel, DType.FP32, "gradient of log-softmax", Category.LOGITS),)

        t.record(loss, (log_probs,), t.save(log_probs, labels, weight), nll_backward)
    return loss


def chunked_loss(t: Tape, hidden: Tensor, head: Linear, *, sequences: int, vocab: int) -> Tensor:
    """
    TRL's fused head: log-probabilities tile by tile, logits never whole. Every position but each sequence's last is scored.

    Source:
        trl@1.16.0, trainer/utils.py add_fused_lm_head; kernels/chunked_logprob.py ChunkedLogProbFunction (on CUDA, with Triton).
    """
    width = head.inputs
    scored = hidden.numel // width - sequences
    chosen = _select(t, hidden, scored * width, scored)
    mode = t.autocast or chosen.dtype
    weight = head.weight
    statistics = [t.new(scored, DType.FP32, "running statistics") for _ in range(7)]
    tile = t.new(smaller(scored, TILE_TOKENS) * TILE_VOCABULARY, mode, "tile of logits", Category.LOGITS)
    part = t.cast(chosen.detach(), mode, "tile of hidden states")
    slab = _weight_tile(t, weight, mode, width, vocab)
    del slab, part
    log_z, log_probs = t.new(scored, DType.FP32, "log-sum-exp"), t.new(scored, DType.FP32, "log-probabilities")
    del statistics, tile
    if t.tracks(chosen, weight):
        sizes = (chosen.numel if chosen.requires_grad else None, weight.numel if weight.requires_grad else None)
        dtypes = chosen.dtype, weight.dtype

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            fp32 = [None if n is None else t.new(n, DType.FP32, "fp32 gradient of the head", Category.LOGITS) for n in sizes]
            tile = t.new(smaller(scored, TILE_TOKENS) * TILE_VOCABULARY, mode, "tile of logits", Category.LOGITS)
            part = t.cast(Tensor(None, scored * width, dtypes[0]), mode, "tile of hidden states")
            slab = _weight_tile(t, weight, mode, width, vocab)
            again = _weight_tile(t, weight, mode, width, vocab) if vocab > TILE_VOCABULARY else None
            del again
            step = t.new(smaller(scored, TILE_TOKENS) * width, DType.FP32, "gradient of a tile")
            del step
            dx, dw = (None if g is None else t.cast(g, d, "gradient of the head") for g, d in zip(fp32, dtypes))
            del tile, part, slab
            return dx, dw

        t.record(log_probs, (chosen, weight), t.save(chosen, weight, log_z), backward)
    return log_probs


def _weight_tile(t: Tape, weight: Tensor, dtype: DType, width: int, vocab: int) -> Tensor | None:
    """A slab of the head's weight in the compute dtype; a view where it already is."""
    if weight.dtype is dtype:
        return None
    return t.new(min(vocab, TILE_VOCABULARY) * width, dtype, "tile of the head's weight", Category.TEMPORARY)


def _select(t: Tape, x: Tensor, numel: int, positions: int) -> Tensor:
    """
    hidden[:, :-1][mask]: a copy of the scored positions. Backward scatters into zeros, once for the mask and once for the slice.

    Source:
        torch@2.13.0, native/TensorAdvancedIndexing.cpp: a boolean mask becomes two int64 index vectors.
    """
    indices = [t.new(positions, DType.INT64, "indices of scored positions") for _ in range(2)]
    out = t.new(numel, x.dtype, "scored hidden states")
    if t.tracks(x):
        full = x.numel

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            scattered = t.new(numel, g.dtype, "scattered gradient")
            whole = t.new(full, g.dtype, "gradient of hidden states")
            del scattered
            return (whole,)

        t.record(out, (x,), t.save(*indices), backward)
    return out
