"""FlashAttention-2 without its package, beside PyTorch's own flash attention and the formula of its scratch."""

from __future__ import annotations

from typing import Any

import pytest

from planner.dtypes import DType
from planner.formulas.workspace import Attention, flash_backward
from planner.ledger import Category, Phase
from tests.engines.traced.runs import highs, traced

torch = pytest.importorskip("torch")

from planner.engines.traced.flash import available, flash_attn_func, flash_attn_varlen_func  # noqa: E402


def scratch(recorder: Any) -> list[int]:
    """What kernels took inside themselves, without cuBLAS."""
    history = recorder.history
    rows = zip(history.sizes, history.names, history.categories, strict=True)
    return [size for size, name, category in rows if category is Category.WORKSPACE and not name.startswith("cuBLAS")]


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 64), (8, 2, 128), (4, 4, 80)])
def test_it_keeps_and_takes_what_the_formula_says(recorder: Any, heads: int, kv_heads: int, width: int) -> None:
    """The output and a number for each query and head in forward; in backward three gradients and the scratch of `mha_bwd`."""
    q, k, v = (torch.randn(2, 128, n, width, device="cuda", dtype=torch.bfloat16).requires_grad_() for n in (heads, kv_heads, kv_heads))
    begin = set(recorder.live.values())
    out = flash_attn_func(q, k, v, causal=True)
    kept = sorted(recorder.history.sizes[i] for i in set(recorder.live.values()) - begin if recorder.history.sizes[i] > 64)
    out.backward(torch.ones_like(out))
    attention = Attention(2, 128, heads, kv_heads, width, DType.BF16)

    assert tuple(out.shape) == (2, 128, heads, width)
    assert kept == sorted([2 * 128 * heads * width * 2, 2 * heads * 128 * 4])
    assert [tensor.nbytes for tensor in flash_backward(attention)] == scratch(recorder)
    assert [tuple(x.grad.shape) for x in (q, k, v)] == [tuple(x.shape) for x in (q, k, v)]


def test_sequences_one_after_the_other(recorder: Any) -> None:
    """Packed sequences have one axis of tokens."""
    q = torch.randn(100, 4, 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
    starts = torch.tensor([0, 40, 100], dtype=torch.int32).cuda()

    assert flash_attn_varlen_func(q, q, q, starts, starts, 60, 60, causal=True).shape == (100, 4, 64)


def test_a_model_takes_it_as_it_takes_sdpa() -> None:
    """A step with FlashAttention-2 has the peaks of one with PyTorch's flash kernel."""
    theirs, ours = (highs(traced("llama", 5, attn=attn, optim="sgd").history) for attn in ("flash_attention_2", "sdpa"))

    for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP):
        assert abs(theirs[phase] / ours[phase] - 1) <= 0.01


def test_transformers_is_itself_again() -> None:
    """Behind the trace the package is as missing as it was."""
    from transformers.modeling_utils import PreTrainedModel

    check = PreTrainedModel._flash_attn_can_dispatch
    with available():
        assert check is not PreTrainedModel._flash_attn_can_dispatch

    assert check is PreTrainedModel._flash_attn_can_dispatch
