"""
The language-model head and its loss over materialised logits; heads that hold none are in `planner.operations.fused_head`.

Shapes: T tokens, d hidden, V vocabulary, N scored positions.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.dtypes import DType
from planner.ledger import Category
from planner.operations.elementwise import activation_of_result, copy, scale
from planner.operations.linear import Linear
from planner.operations.lora import linear
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor


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


def full_loss(t: Tape, given: Tensor, tokens: int, *, sequences: int, shifts_logits: bool = False) -> Tensor:
    """
    Cross entropy over materialised logits: an fp32 copy, its log-softmax (kept for backward), and a gradient of both in backward.

    Args:
        t: The tape.
        given: Logits [T, V].
        tokens: T.
        sequences: B. The shifted labels of one are a view, those of more a copy.
        shifts_logits: Whether logits are shifted into a contiguous copy of their own (transformers before 4.49) rather than labels.

    Source:
        transformers@5.23.0, loss/loss_utils.py ForCausalLMLoss; torch@2.13.0, native/LossNLL.cpp.
    """
    before, t.category = t.category, Category.LOGITS
    fp32 = t.cast(given, DType.FP32, "logits in fp32")
    shifted = copy(t, fp32, "shifted logits") if shifts_logits else fp32
    padded = t.new(tokens + sequences, DType.INT64, "padded labels", Category.INPUT)
    labels = t.new(tokens, DType.INT64, "shifted labels", Category.INPUT) if sequences > 1 else padded
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
