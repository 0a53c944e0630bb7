"""
The flash-attn package's functions, by PyTorch's own flash attention: its kernel is compiled for a card and seen by no dispatcher.

Both keep q, k, v, the output and one log-sum-exp a query, and need the same room in backward. The package need not be installed.

Source:
    flash-attention@v2.8.3, flash_attn/flash_attn_interface.py, FlashAttnFunc, FlashAttnVarlenFunc; csrc/flash_attn/flash_api.cpp, mha_bwd.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere

from planner.engines.running.older import IS_OLDER

_forward = torch.ops.aten._flash_attention_forward.default


def flash_attn_func(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None, deterministic: bool = False,
    return_attn_probs: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Attention of q [B, S, H, h] to k and v [B, S, K, h]."""
    return _attend(q, k, v, None, None, q.shape[1], k.shape[1], dropout_p, softmax_scale, causal)


def flash_attn_varlen_func(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor, max_seqlen_q: int,
    max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None, deterministic: bool = False,
    return_attn_probs: bool = False, block_table: Any = None,
) -> torch.Tensor:  # fmt: skip
    """The same over sequences that lie one after the other: q [T, H, h], k and v [T, K, h]."""
    return _attend(q, k, v, cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k), dropout_p, softmax_scale, causal)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts_q: Any, starts_k: Any, longest_q: int, longest_k: int, dropout_p: float,
    scale: float | None, causal: bool,
) -> torch.Tensor:  # fmt: skip
    width = q.shape[-1]
    pad = -width % 8
    if pad:
        q, k, v = (F.pad(x, (0, pad)) for x in (q, k, v))
    scale = width**-0.5 if scale is None else scale
    out = _forward(q, k, v, starts_q, starts_k, longest_q, longest_k, dropout_p, causal, False, scale=scale)[0]
    return out[..., :width] if pad else out


@contextmanager
def available() -> Iterator[None]:
    """
    Inside, transformers has FlashAttention-2.

    Source:
        transformers@5.23.0, modeling_utils.py, _flash_attn_can_dispatch; modeling_flash_attention_utils.py, _lazy_imports.
    """
    from transformers import modeling_flash_attention_utils as utils
    from transformers import modeling_utils
    from transformers.modeling_utils import PreTrainedModel

    if IS_OLDER:
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(modeling_utils, "is_flash_attn_2_available", return_value=True))
            for name in ("flash_attn_func", "flash_attn_varlen_func"):
                stack.enter_context(mock.patch.object(utils, name, globals()[name], create=True))
            stack.enter_context(mock.patch.object(utils, "_flash_supports_window_size", new=True, create=True))
            yield
        return
    check = PreTrainedModel._flash_attn_can_dispatch

    def can_dispatch(self: Any, flash_attn_version: int, *args: Any, **kwargs: Any) -> bool:
        is_ours = flash_attn_version == 2 and self._supports_flash_attn
        return True if is_ours else check(self, flash_attn_version, *args, **kwargs)

    def imports(*_: Any, **__: Any) -> tuple[Any, ...]:
        return flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(PreTrainedModel, "_flash_attn_can_dispatch", can_dispatch))
        stack.enter_context(mock.patch.object(utils, "_lazy_imports", imports))
        stack.enter_context(mock.patch.object(utils, "_loaded_implementation", None))
        stack.enter_context(mock.patch.object(utils, "is_flash_attn_2_available", return_value=True))
        yield
