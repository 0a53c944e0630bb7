"""What only real tensors show, because PyTorch's engine treats the oracle's fake ones as tensor subclasses."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="autograd is asked")


def sums_in_backward(loss: Any) -> list[str]:
    """The additions that the autograd engine makes itself, in order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss.backward()
    return [event.name for event in profile.events() if event.name in ("aten::add", "aten::add_")]


def test_gradients_of_a_tied_weight_are_summed_out_of_place():
    """Head and embedding share a weight: at the sum three gradients of its size are alive, on real tensors as on fake ones."""
    V, D, S = 50, 16, 8
    weight = torch.randn(V, D, requires_grad=True)
    hidden = torch.nn.functional.embedding(torch.arange(S)[None], weight).sin()
    logits = torch.nn.functional.linear(hidden, weight)

    assert sums_in_backward(logits.logsumexp(-1).sum()) == ["aten::add"]


def test_gradients_of_a_residual_stream_are_summed_in_place():
    """The stream's gradient and the branch's meet in the older of the two, which nothing else reads any more."""
    B, D = 4, 16
    x = torch.randn(B, D, requires_grad=True).sin()
    branch = torch.nn.functional.linear(x.relu(), torch.randn(D, D, requires_grad=True))

    assert sums_in_backward((x.cos() + branch).sum()) == ["aten::add_"]
