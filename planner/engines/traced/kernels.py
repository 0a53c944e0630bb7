"""
What CUDA does in a kernel of its own: the choices that C++ makes for CUDA tensors alone, and the memory that kernels take internally.

The scratch table is `planner.formulas.workspace`; each row there names its source. What a kernel takes is seen by no dispatcher.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere

from planner.dtypes import DType
from planner.engines.running.books import Rule
from planner.engines.traced.ghosts import NAME, Ghost
from planner.engines.traced.recorder import Recorder
from planner.formulas.workspace import Attention, cublas_workspace, efficient_backward, flash_backward

_aten = torch.ops.aten
_AUTOGRAD = "AutogradPrivateUse1"
_DTYPES = {torch.float32: DType.FP32, torch.float16: DType.FP16, torch.bfloat16: DType.BF16}

COMPOSITE_ELSEWHERE = ("silu_backward", "mish_backward", "_fused_rms_norm")
"""
Operations that have one kernel on CUDA and are put together from others on a device without.

Source:
    torch@2.14.1, CUDA build: the operations with both a CUDA and a CompositeImplicitAutograd kernel.
"""

PRODUCTS = tuple(
    getattr(packet, overload)
    for packet in (_aten.mm, _aten.addmm, _aten.addmm_, _aten.bmm, _aten.baddbmm, _aten.baddbmm_, _aten.linear)
    for overload in packet.overloads()
)
"""
Products that go to cuBLAS, which takes its workspace in the first one of each thread, whatever they write to (`mm.out`, in place, in
another type); `linear` is whole where autograd is off.
"""

capability = (8, 0)
"""Of the card that the trace runs for; the registered kernels below ask for it."""


@cache
def register() -> torch.library.Library:
    """Give the ghosts' backend the choices that C++ makes for CUDA; once a process."""
    library = torch.library.Library("aten", "IMPL")
    for name in COMPOSITE_ELSEWHERE:
        if hasattr(_aten, name):
            library.impl(name, _unreachable, "PrivateUse1")
    library.impl("scaled_dot_product_attention", attention, _AUTOGRAD)
    library.impl("softmax.int", _Softmax(_aten._softmax.default), _AUTOGRAD)
    library.impl("log_softmax.int", _Softmax(_aten._log_softmax.default), _AUTOGRAD)
    library.impl("to.dtype_layout", _to, _AUTOGRAD)
    library.impl("to.device", _to_device, _AUTOGRAD)
    return library


def _unreachable(*_: Any, **__: Any) -> Any:
    raise AssertionError("the recorder runs this operation, below autograd and above this kernel")


def _to(
    x: torch.Tensor, *, dtype: torch.dtype | None = None, layout: Any = None, device: torch.device | None = None, pin_memory: Any = None,
    non_blocking: bool = False, copy: bool = False, memory_format: torch.memory_format | None = None,
) -> torch.Tensor:  # fmt: skip
    """
    `x.to(...)`, which is x itself where nothing changes: what Python calls `cuda` is where a ghost is already.

    Source:
        torch@2.13.0, aten/src/ATen/native/TensorConversions.cpp, to_will_alias.
    """
    to_card = device is not None and torch.device(device).type in ("cuda", NAME)
    stays = device is None or to_card is not (isinstance(x, Ghost) and x.on_host)
    if stays and not copy and dtype in (None, x.dtype) and memory_format in (None, torch.preserve_format):
        return x
    return _aten._to_copy.default(x, dtype=dtype, device=None if stays else device, memory_format=memory_format)


def _to_device(x: torch.Tensor, device: Any, dtype: torch.dtype, *_: Any, **__: Any) -> torch.Tensor:
    return _to(x, dtype=dtype, device=device)


class _Softmax:
    """
    fp16 that is wanted in fp32 is read as it is; other types are copied first.

    Source:
        torch@2.13.0, aten/src/ATen/native/SoftMax.cpp, softmax and log_softmax (half_to_float).
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __call__(self, x: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        reads_half = x.dtype is torch.float16 and dtype is torch.float32
        if dtype is None or reads_half:
            return self.kernel(x, dim, reads_half)
        return self.kernel(x.to(dtype), dim, False)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """
    `scaled_dot_product_attention` by the kernel that CUDA would choose: flash, memory-efficient, or the products one by one.

    Source:
        torch@2.13.0, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, select_sdp_backend and the checks it lists;
        native/transformers/attention.cpp, scaled_dot_product_attention, convert_boolean_attn_mask, pad_bias.
    """
    width, groups = q.shape[-1], q.shape[1] // k.shape[1] if k.shape[1] else 1
    is_dense = q.dtype in _DTYPES and q.dim() == k.dim() == v.dim() == 4 and (q.shape[1] == k.shape[1] == v.shape[1] or enable_gqa)
    same_width = width == v.shape[-1]
    half = q.dtype in (torch.float16, torch.bfloat16)
    if is_dense and same_width and attn_mask is None and half and width <= 256 and capability >= (8, 0):
        pad = -width % 8
        if pad:
            q, k, v = (F.pad(x, (0, pad)) for x in (q, k, v))
        scale = width**-0.5 if scale is None else scale
        out = _aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, False, scale=scale)[0]
        return out[..., :width] if pad else out
    if not is_dense or width % _alignment(q.dtype) or v.shape[-1] % _alignment(q.dtype):
        named = {"scale": scale, "enable_gqa": enable_gqa}
        return _aten._scaled_dot_product_attention_math(q, k, v, attn_mask, dropout_p, is_causal, None, **named)[0]
    if groups > 1:
        k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    bias = None if attn_mask is None else _bias(attn_mask, q, k)
    keeps = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    return _aten._scaled_dot_product_efficient_attention(q, k, v, bias, keeps, dropout_p, is_causal, scale=scale)[0]


def _alignment(dtype: torch.dtype) -> int:
    """
    What memory-efficient attention wants heads to be multiples of.

    Source:
        torch@2.13.0, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, minimum_gemm_alignment.
    """
    if dtype is not torch.float32 and capability >= (7, 0):
        return 8
    return 4 if capability >= (8, 0) else 1


def _bias(mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    if mask.dtype is torch.bool:
        bias = torch.zeros_like(mask, dtype=q.dtype)
        mask = bias.masked_fill_(mask.logical_not(), -math.inf)
    missing = -mask.shape[-1] % 16
    if missing:
        mask = F.pad(mask, (0, missing))[..., : k.shape[2]]
    return mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])


# Scratch


def _size(q: torch.Tensor, k: torch.Tensor) -> Attention:
    batch, heads, tokens, width = q.shape
    return Attention(batch, tokens, heads, k.shape[1], width, _DTYPES[q.dtype])


def _softmax_backward(recorder: Recorder, args: tuple[Any, ...]) -> None:
    """`grad * output`, made inside the kernel. Source: aten/src/ATen/native/cuda/SoftMax.cu, softmax_backward_cuda_out."""
    recorder.scratch("softmax backward workspace", args[0].numel() * args[0].element_size())


def _flash_backward(recorder: Recorder, args: tuple[Any, ...]) -> None:
    recorder.scratch("attention backward workspace", *(t.nbytes for t in flash_backward(_size(args[1], args[2]))))


def _efficient_backward(recorder: Recorder, args: tuple[Any, ...]) -> None:
    recorder.scratch("attention backward workspace", *(t.nbytes for t in efficient_backward(_size(args[1], args[2]), capability)))


def _flash_package_backward(recorder: Recorder, args: tuple[Any, ...]) -> None:
    """q [B, S, H, h], or [T, H, h] of sequences one after the other, which are taken to be equally long."""
    q, k = args[1:3]
    starts = args[6]
    if starts is None:
        batch, tokens, heads, width = q.shape
    else:
        batch = starts.numel() - 1
        (total, heads, width), tokens = q.shape, 0
        tokens = -(-total // max(batch, 1))
    size = Attention(batch, tokens, heads, k.shape[-2], width, _DTYPES[q.dtype])
    recorder.scratch("attention backward workspace", *(t.nbytes for t in flash_backward(size)))


SCRATCH = {
    _aten._flash_attention_backward.default: _flash_package_backward,
    _aten._softmax_backward_data.default: _softmax_backward,
    _aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    _aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
}


class Workspaces:
    """cuBLAS's workspaces: one a thread, taken inside its first product and kept."""

    def __init__(self, nbytes: int | None = None) -> None:
        self.nbytes = cublas_workspace(capability[0]) if nbytes is None else nbytes
        self.taken: set[str] = set()

    def __call__(self, recorder: Recorder, _: tuple[Any, ...]) -> None:
        """A product has run."""
        thread = "autograd" if torch._C._current_graph_task_id() != -1 else "forward"
        if thread not in self.taken:
            self.taken.add(thread)
            recorder.hold(self.nbytes, f"cuBLAS workspace of the {thread} thread")


# Numbers


def _number(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`.item()`: known numbers are read; of others only floats are, as zero: a loss that is printed, a norm that is logged."""
    (x,) = args
    if not isinstance(x, Ghost):
        return func(x)
    if x.value is not None:
        return x.value.item()
    if x.is_floating_point():
        return 0.0
    raise recorder.refusal(func, "it reads a number that only a real run has, and may act on it")


def _truth(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """`if x:`, where a library asks it below autograd."""
    return bool(_number(recorder, func, args, kwargs))


def _equal(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    a, b = (x.value if isinstance(x, Ghost) else x for x in args)
    if a is None or b is None:
        raise recorder.refusal(func, "it compares numbers that only a real run has")
    return bool(torch.equal(a, b))


def _indexed(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Masks among the indices become positions first, as int64, which CUDA makes meanwhile."""
    x, indices, *rest = args
    found: list[Any] = []
    masks: list[int] = []
    for index in indices:
        if not isinstance(index, torch.Tensor) or index.dtype not in (torch.bool, torch.uint8):
            found.append(index)
            continue
        value = index.value if isinstance(index, Ghost) else index
        if value is None:
            raise recorder.refusal(func, "the size of its result depends on numbers that only a real run has")
        positions = value.nonzero().unbind(1)
        masks += [8 * p.numel() for p in positions]
        found += positions
    if masks and recorder.device == "cuda":
        recorder.scratch("indices of a mask", *masks)
    return recorder.run(func, (x, found, *rest), kwargs)


def _grouped_product(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """
    One product for each expert, of any type: the meta device knows it for bf16 alone.

    Source:
        torch@2.13.0, aten/src/ATen/native/cuda/GroupedBlas.cpp, _grouped_mm_cuda: other types go one by one.
    """
    if args[0].dtype is torch.bfloat16:
        return recorder.run(func, args, kwargs)

    def shape(*lowered: Any, **named: Any) -> torch.Tensor:
        x, y, *rest = lowered
        out: torch.Tensor = func(x.to(torch.bfloat16), y.to(torch.bfloat16), *rest, **named)
        return out.to(x.dtype)

    return recorder.run(func, args, kwargs, shape)


def rules() -> dict[Any, Rule]:
    """Operations that the meta device cannot run as the run's device does."""
    return {
        _aten._local_scalar_dense.default: _number,
        _aten.is_nonzero.default: _truth,
        _aten.equal.default: _equal,
        _aten.index.Tensor: _indexed,
        _aten.index_put.default: _indexed,
        _aten.index_put_.default: _indexed,
        _aten._grouped_mm.default: _grouped_product,
    }
