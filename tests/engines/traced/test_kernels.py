"""What C++ chooses for CUDA tensors, by the rules in its sources, and scratch by `planner.formulas.workspace`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from planner.dtypes import DType
from planner.formulas.workspace import Attention, cublas_workspace, efficient_backward, flash_backward
from planner.ledger import Category

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("transformers")

from planner.engines.traced.run import recording  # noqa: E402

F = torch.nn.functional
FP16, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
FLASH, EFFICIENT = "aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_efficient_attention"
MATH = "the products one by one"


def run_attention(
    width: int = 64, heads: tuple[int, int] = (4, 4), dtype: Any = BF16, *, masked: bool = False, v_width: int | None = None,
    tokens: int = 128, **options: Any,
) -> Any:  # fmt: skip
    """One attention; its output."""
    q, k, v = (
        torch.randn(2, count, tokens, size, device="cuda", dtype=dtype).requires_grad_()
        for count, size in ((heads[0], width), (heads[1], width), (heads[1], v_width or width))
    )
    mask = torch.zeros(2, 1, tokens, tokens, device="cuda", dtype=dtype) if masked else None
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=not masked, **options)


# aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: flash from capability 8.0 on, for 16 bits, heads up to 256, without a mask; the
# memory-efficient kernel for other types, masks and widths of values; grouped heads only where they are announced.
CHOICES: list[tuple[tuple[int, int], dict[str, Any], str]] = [
    ((8, 0), {}, FLASH),
    ((8, 0), {"dtype": FP16}, FLASH),
    ((9, 0), {}, FLASH),
    ((12, 0), {}, FLASH),
    ((7, 5), {"dtype": FP16}, EFFICIENT),
    ((7, 0), {"dtype": FP16}, EFFICIENT),
    ((8, 0), {"dtype": FP32}, EFFICIENT),
    ((7, 5), {"dtype": FP32}, EFFICIENT),
    ((8, 0), {"dtype": FP64}, MATH),
    ((8, 0), {"masked": True}, EFFICIENT),
    ((8, 0), {"width": 256}, FLASH),
    ((8, 0), {"width": 264}, EFFICIENT),
    ((8, 0), {"width": 20}, FLASH),  # padded to 24
    ((8, 0), {"width": 20, "masked": True}, MATH),  # not a multiple of 8
    ((8, 0), {"width": 20, "dtype": FP32}, EFFICIENT),  # a multiple of 4
    ((8, 0), {"width": 18, "dtype": FP32}, MATH),
    ((7, 5), {"width": 18, "dtype": FP32}, EFFICIENT),
    ((8, 0), {"v_width": 128}, EFFICIENT),
    ((8, 0), {"heads": (8, 2), "enable_gqa": True}, FLASH),
    ((8, 0), {"heads": (8, 1)}, MATH),
    ((7, 5), {"heads": (8, 1), "dtype": FP16}, MATH),
]


@pytest.mark.parametrize(("capability", "options", "expected"), CHOICES)
def test_the_kernel_of_an_attention(capability: tuple[int, int], options: dict[str, Any], expected: str) -> None:
    """By the card, the type, the mask, the width and the heads, as C++ checks them."""
    with recording(capability) as recorder:
        out = run_attention(**options)
        names = set(recorder.history.names)
        shape = tuple(out.shape)

    found = (names & {FLASH, EFFICIENT}) or {MATH}
    assert {expected} == found
    assert shape == (2, options.get("heads", (4,))[0], 128, options.get("v_width", options.get("width", 64)))


def test_a_head_of_three_dimensions_goes_product_by_product(recorder: Any) -> None:
    """Fused kernels want a batch and heads."""
    x = torch.randn(4, 16, 64, device="cuda", dtype=BF16)
    out = F.scaled_dot_product_attention(x, x, x)

    assert out.shape == x.shape
    assert {FLASH, EFFICIENT} & set(recorder.history.names) == set()


def test_a_boolean_mask_becomes_a_bias(recorder: Any) -> None:
    """Of the queries' type and as wide as a multiple of 16, as the kernel wants it; the mask itself is not expanded."""
    tokens = 100
    q = torch.randn(2, 4, tokens, 64, device="cuda", dtype=BF16)
    mask = torch.ones(2, 1, tokens, tokens, dtype=torch.bool, device="cuda")
    begin = len(recorder.history.sizes)
    F.scaled_dot_product_attention(q, q, q, mask)
    made = dict(zip(recorder.history.names[begin:], recorder.history.sizes[begin:], strict=True))

    assert made["aten.constant_pad_nd"] == 2 * tokens * 112 * 2
    assert EFFICIENT in made


def scratch(recorder: Any, name: str) -> list[int]:
    """Bytes of the buffers of a name."""
    history = recorder.history
    return [size for size, found in zip(history.sizes, history.names, strict=True) if found == name]


@pytest.mark.parametrize(
    ("capability", "options", "formula"),
    [
        ((8, 0), {"width": 80}, lambda a, _: flash_backward(a)),
        ((8, 0), {"heads": (8, 2), "enable_gqa": True}, lambda a, _: flash_backward(a)),
        ((7, 5), {"dtype": FP16, "width": 128}, efficient_backward),
        ((8, 0), {"dtype": FP32, "width": 96}, efficient_backward),
        ((8, 9), {"masked": True, "width": 128}, efficient_backward),
    ],
)
def test_scratch_of_attention_is_the_formulas(capability: tuple[int, int], options: dict[str, Any], formula: Callable[..., Any]) -> None:
    """The buffers that the backward of a kernel takes are those of `formulas.workspace`, and go with it."""
    kinds = {BF16: DType.BF16, FP16: DType.FP16, FP32: DType.FP32}
    heads = options.get("heads", (4, 4))
    attention = Attention(2, 128, *heads, options.get("width", 64), kinds[options.get("dtype", BF16)])
    with recording(capability) as recorder:
        run_attention(**options).sum().backward()
        found = scratch(recorder, "attention backward workspace")
        alive = set(recorder.live.values())

    assert [tensor.nbytes for tensor in formula(attention, capability)] == found
    assert not any(recorder.history.names[i] == "attention backward workspace" for i in alive)


@pytest.mark.parametrize(("function", "makes"), [(F.softmax, 1), (F.log_softmax, 0)])
def test_softmax_backward_makes_a_matrix_inside_itself(recorder: Any, function: Any, makes: int) -> None:
    """`grad * output`, as large as the output; log-softmax makes none."""
    x = torch.randn(4, 32, 32, device="cuda", requires_grad=True)
    function(x, dim=-1).sum().backward()

    assert [x.numel() * 4] * makes == scratch(recorder, "softmax backward workspace")


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
@pytest.mark.parametrize(("given", "wanted", "copies"), [(FP16, FP32, 0), (BF16, FP32, 1), (FP32, FP32, 0), (BF16, BF16, 0)])
def test_softmax_of_half_in_fp32_makes_no_copy(recorder: Any, function: Any, given: Any, wanted: Any, copies: int) -> None:
    """SoftMax.cpp: fp16 is read as it is (half_to_float), any other type is copied first."""
    x = torch.randn(16, 64, device="cuda", dtype=given, requires_grad=True)
    begin = len(recorder.history.sizes)
    out = function(x, dim=-1, dtype=wanted)
    made = recorder.history.sizes[begin:]
    out.sum().backward()

    assert out.dtype is wanted
    assert x.grad.dtype is given
    assert [16 * 64 * out.element_size()] * (1 + copies) == made


@pytest.mark.parametrize("function", [F.silu, F.mish, F.gelu])
def test_backward_of_an_activation_is_one_kernel(recorder: Any, function: Any) -> None:
    """It makes its gradient and nothing beside it."""
    x = torch.randn(8, 8, device="cuda", dtype=BF16, requires_grad=True)
    y, seed = function(x), torch.ones(8, 8, device="cuda", dtype=BF16)
    begin = len(recorder.history.sizes)
    torch.autograd.grad(y, x, seed)

    assert recorder.history.sizes[begin:] == [128]


def test_rms_norm_is_one_kernel(recorder: Any) -> None:
    """`_fused_rms_norm` makes the output and a number for each row."""
    x, w = torch.randn(8, 64, device="cuda", dtype=BF16), torch.ones(64, device="cuda", dtype=BF16)
    begin = len(recorder.history.sizes)
    F.rms_norm(x, (64,), w)

    assert recorder.history.sizes[begin:] == [8 * 64 * 2, 8 * 4]


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0)])
def test_each_thread_takes_one_cublas_workspace(capability: tuple[int, int]) -> None:
    """Inside the first product of forward and the first of backward, and keeps it."""
    with recording(capability) as recorder:
        w = torch.randn(8, 8, device="cuda", requires_grad=True)
        x = torch.randn(8, 8, device="cuda") + 1
        names = [len([n for n in recorder.history.names if n.startswith("cuBLAS")])]
        for _ in range(2):
            y = torch.mm(x, w)
            y = torch.addmm(w, x, y)
            names.append(len([n for n in recorder.history.names if n.startswith("cuBLAS")]))
            y.sum().backward()
            names.append(len([n for n in recorder.history.names if n.startswith("cuBLAS")]))
        history = recorder.history
        held = [i for i, name in enumerate(history.names) if name.startswith("cuBLAS")]

    assert names == [0, 1, 2, 2, 2]
    assert [cublas_workspace(capability[0])] * 2 == [history.sizes[i] for i in held]
    assert {Category.WORKSPACE} == {history.categories[i] for i in held}
    assert not any(~i in history.events for i in held)
    assert history.names[held[0] - 1] == "aten.mm"


def test_a_mask_as_an_index_becomes_positions(recorder: Any) -> None:
    """CUDA makes int64 positions of it, which are gone when the result is there."""
    x, mask = torch.randn(6, 4, device="cuda"), torch.tensor([1, 0, 1, 1, 0, 0], dtype=torch.bool).to("cuda")
    begin = len(recorder.history.sizes)
    y = x[mask]

    assert y.shape == (3, 4)
    assert recorder.history.sizes[begin:] == [3 * 8, 3 * 4 * 4]
    assert scratch(recorder, "indices of a mask") == [24]


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_grouped_products_take_any_type(recorder: Any, dtype: Any) -> None:
    """One product for each expert, in its arguments' type."""
    x, w = torch.randn(16, 32, device="cuda", dtype=dtype), torch.randn(4, 32, 48, device="cuda", dtype=dtype)
    offsets = torch.tensor([4, 8, 12, 16], dtype=torch.int32).to("cuda")
    out = torch._grouped_mm(x, w, offs=offsets)

    assert (tuple(out.shape), out.dtype) == ((16, 48), dtype)


def test_to_returns_the_tensor_itself_where_nothing_changes(recorder: Any) -> None:
    """And a copy where something does, or where it is asked for."""
    x = torch.randn(4, 4, device="cuda")

    assert x.to(FP32) is x.to("cuda") is x.to("cuda", FP32) is x.to(x) is x.float() is x
    assert x.to(FP32, copy=True) is not x
    assert x.to("cuda", BF16).dtype is BF16
