"""
LFM2's short convolution: what stands in the place of attention in most of its layers.

Counted is the path of a plain install; the `causal-conv1d` package and kernels from the Hub take another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.architecture.decoder import Attention
from planner.operations.elementwise import mul, part, scale, split
from planner.schedule import Tape
from planner.tensors import Grads, Saved, Tensor
from planner.value import Value

if TYPE_CHECKING:
    from planner.operations.decoder import Runner


class Convolution(Value, eq=False):
    """A depthwise convolution along the tokens: weight [channels, 1, taps] and bias."""

    weight: Tensor
    bias: Tensor | None


def short_convolution(run: Runner, x: Tensor, spec: Attention) -> Tensor:
    """
    out(C * convolved(B * x)), where B, C and x come from one projection.

    Source:
        transformers@5.23.0, models/lfm2/modeling_lfm2.py, Lfm2ShortConv.forward, causal_conv1d_fn, apply_mask_to_padding_states.
    """
    t, batch = run.t, run.batch
    if run.positions.unpads:
        x = scale(t, x, "padding set to zero")
    b, c, inner = split(t, run.linear(spec.fused, x), [x.numel] * 3)
    hidden = mul(t, b, inner, "gated input")
    padded = x.numel // batch.length * (batch.length + spec.taps - 1)
    hidden = part(t, depthwise(t, hidden, run.weights.convolutions[spec.convolution], padded), x.numel)
    hidden = t.cast(hidden, c.dtype)
    y = mul(t, c, hidden, "gated convolution")
    return run.linear(spec.out, y)


def depthwise(t: Tape, x: Tensor, layer: Convolution, numel: int) -> Tensor:
    """
    F.conv1d over padded tokens, in the weight's type: saves its input and its weight, whichever is trained.

    Source:
        torch@2.13.0, tools/autograd/derivatives.yaml, convolution; workspaces of cuDNN are not counted.
    """
    x = t.cast(x, layer.weight.dtype, "convolution input")
    x, weight = t.lower(x), t.lower(layer.weight)
    bias = None if layer.bias is None else t.lower(layer.bias)
    tracked = t.tracks(x, weight, bias)
    saved = t.save(x, weight) if tracked else None
    out = t.new(numel, x.dtype, "convolved")
    if tracked:
        sizes = [None if p is None or not p.requires_grad else p.numel for p in (x, weight, bias)]

        def backward(t: Tape, grads: Grads, saved: Saved) -> Sequence[Tensor | None]:
            g = grads[0]
            assert g is not None
            return [None if n is None else t.new(n, g.dtype, "gradient of a convolution") for n in sizes]

        t.record(out, (x, weight, bias), saved, backward)
    return out
