"""CUDA's autocast on ghosts, against the installed torch's own registrations and PyTorch's documentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("transformers")

from planner.engines.traced import autocast  # noqa: E402
from planner.engines.traced.run import recording  # noqa: E402
from planner.errors import UnavailableError  # noqa: E402

F = torch.nn.functional
BY_HAND = {
    "norm.Scalar", "norm.ScalarOpt_dim",  # by hand there and here: the overload with a dtype stands in
    "binary_cross_entropy",  # refused
    "cudnn_convolution", "cudnn_convolution_transpose",  # inside `convolution`, which is listed
}  # fmt: skip
FP16, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def test_the_lists_are_the_dispatchers() -> None:
    """Every operation that autocast knows on CUDA is in one of the lists, and no other."""
    every = torch._C._dispatch_get_all_op_names()
    registered = {op for op in every if torch._C._dispatch_has_kernel_for_dispatch_key(op, "AutocastCUDA")}
    listed = {f"aten::{entry}" for entries in autocast.operations().values() for entry in entries}

    assert {f"aten::{op}" for op in BY_HAND} == registered - listed
    assert listed - registered == set()


def test_no_operation_is_in_two_lists() -> None:
    """An operation has one policy."""
    entries = [entry for listed in autocast.operations().values() for entry in listed]

    assert len(entries) == len(set(entries))


def test_a_torch_without_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the lists there is no guess."""
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))

    with pytest.raises(UnavailableError, match="autocast operations") as error:
        autocast.operations.__wrapped__()
    assert "pip install" in str(error.value.hint)


def made(*shape: int, dtype: Any = FP32) -> Any:
    """A tensor on the card."""
    return torch.randn(*shape, device="cuda").to(dtype)


# https://docs.pytorch.org/docs/stable/amp.html, "CUDA Op-Specific Behavior"
TO_HALF: dict[str, Callable[[Any], Any]] = {
    "matmul": lambda x: x @ x,
    "mm": lambda x: torch.mm(x, x),
    "addmm": lambda x: torch.addmm(x, x, x),
    "bmm": lambda x: torch.bmm(x[None], x[None]),
    "baddbmm": lambda x: torch.baddbmm(x[None], x[None], x[None]),
    "mv": lambda x: torch.mv(x, x[0]),
    "linear": lambda x: F.linear(x, x, x[0]),
    "conv1d": lambda x: F.conv1d(x[None], x[..., None]),
    "conv2d": lambda x: F.conv2d(x[None, None], x[None, None]),
    "prelu": lambda x: F.prelu(x, x[0, :1]),
    "attention": lambda x: F.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
}
TO_FLOAT: dict[str, Callable[[Any], Any]] = {
    "exp": torch.exp,
    "log": torch.log,
    "rsqrt": torch.rsqrt,
    "pow": lambda x: x**2,
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "softplus": F.softplus,
    "layer_norm": lambda x: F.layer_norm(x, (8,)),
    "group_norm": lambda x: F.group_norm(x[None], 4),
    "cross_entropy": lambda x: F.cross_entropy(x, torch.zeros(8, dtype=torch.int64, device="cuda")),
    "mse_loss": lambda x: F.mse_loss(x, x),
    "bce_with_logits": lambda x: F.binary_cross_entropy_with_logits(x, x),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x),
    "cdist": lambda x: torch.cdist(x, x),
    "sum": lambda x: x.sum(),
    "sum of an axis": lambda x: x.sum(-1),
    "prod": lambda x: x.prod(-1),
    "cumsum": lambda x: x.cumsum(-1),
    "norm": lambda x: x.norm(),
    "norm of an axis": lambda x: x.norm(dim=-1, keepdim=True),
    "linalg.vector_norm": torch.linalg.vector_norm,
    "upsample": lambda x: F.interpolate(x[None], scale_factor=2),
}
AS_THEY_ARE: dict[str, Callable[[Any], Any]] = {
    "add": lambda x: x + x,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "cat": lambda x: torch.cat([x, x]),
    "mean": lambda x: x.mean(-1),
    "max": lambda x: x.amax(-1),
    "in place": lambda x: x.clone().addmm_(x, x),
    "a dtype that is asked for": lambda x: x.sum(dtype=x.dtype),
    "embedding": lambda x: F.embedding(torch.zeros(3, dtype=torch.int64, device="cuda"), x),
}


@pytest.mark.parametrize("given", [FP16, FP32])
@pytest.mark.parametrize("half", [FP16, BF16])
@pytest.mark.parametrize("name", TO_HALF)
def test_products_run_in_the_lower_precision(recorder: Any, name: str, half: Any, given: Any) -> None:
    """Whatever comes in, a product is computed in autocast's type."""
    x = made(8, 8, dtype=given)
    with torch.autocast("cuda", half):
        assert TO_HALF[name](x).dtype is half


@pytest.mark.parametrize("given", [FP16, BF16, FP32])
@pytest.mark.parametrize("name", TO_FLOAT)
def test_sums_and_norms_run_in_fp32(recorder: Any, name: str, given: Any) -> None:
    """Whatever comes in, these come out in fp32."""
    x = made(8, 8, dtype=given)
    with torch.autocast("cuda", FP16):
        assert TO_FLOAT[name](x).dtype is FP32


@pytest.mark.parametrize("given", [FP16, BF16, FP32])
@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_other_operations_keep_their_types(recorder: Any, name: str, given: Any) -> None:
    """What is in no list runs as without autocast."""
    x = made(8, 8, dtype=given)
    with torch.autocast("cuda", FP16):
        assert AS_THEY_ARE[name](x).dtype is given


@pytest.mark.parametrize("op", [torch.addcmul, torch.addcdiv])
def test_some_take_the_widest_type(recorder: Any, op: Any) -> None:
    """Of operations with several inputs, one in fp32 makes all fp32; if none is, autocast's type rules."""
    half, full = made(8, dtype=FP16), made(8)
    with torch.autocast("cuda", FP16):
        assert op(half, half, half).dtype is FP16
        assert op(half, full, half).dtype is FP32
        assert torch.dot(half, full).dtype is FP32
        assert (half + full).dtype is FP32


def test_doubles_and_integers_are_left_alone(recorder: Any) -> None:
    """Autocast casts floating types up to fp32 alone."""
    x, n = made(8, 8, dtype=FP64), torch.ones(8, dtype=torch.int64, device="cuda")
    with torch.autocast("cuda", FP16):
        assert (x @ x).dtype is FP64
        assert x.exp().dtype is FP64
        assert n.sum().dtype is torch.int64
        assert n.cumsum(0).dtype is torch.int64


def test_binary_cross_entropy_is_refused(recorder: Any) -> None:
    """As CUDA's autocast refuses it; outside it runs."""
    x = made(4).sigmoid()
    F.binary_cross_entropy(x, x)

    with pytest.raises(RuntimeError, match="unsafe to autocast"), torch.autocast("cuda", FP16):
        F.binary_cross_entropy(x, x)


def casts(recorder: Any) -> int:
    """Copies that were made so far."""
    return sum(name.startswith("aten._to_copy") for name in recorder.history.names)


def weight(*, trained: bool) -> Any:
    """A weight in fp32."""
    return torch.nn.Parameter(torch.empty(16, 16, device="cuda"), requires_grad=trained)


def twice(recorder: Any, w: Any, **autocast_options: Any) -> int:
    """Casts of two products with one weight."""
    x, before = made(4, 16, dtype=BF16), casts(recorder)
    with torch.autocast("cuda", BF16, **autocast_options):
        F.linear(F.linear(x, w), w)
    return casts(recorder) - before


def test_a_trained_weight_is_cast_once_in_a_region(recorder: Any) -> None:
    """The cast of a trainable fp32 leaf is kept; that of a frozen one, or of a result, is not, nor without the cache."""
    assert twice(recorder, weight(trained=True)) == 1
    assert twice(recorder, weight(trained=False)) == 2
    assert twice(recorder, weight(trained=True) * 1) == 2
    assert twice(recorder, weight(trained=True), cache_enabled=False) == 2
    assert twice(recorder, weight(trained=True).detach()) == 2


def test_the_next_region_casts_again(recorder: Any) -> None:
    """Casts live until the outermost region ends, through regions inside it."""
    w, x = weight(trained=True), made(4, 16, dtype=BF16)
    before = casts(recorder)
    with torch.autocast("cuda", BF16):
        F.linear(x, w)
        with torch.autocast("cuda", BF16):
            F.linear(x, w)
        F.linear(x, w)
        inside = casts(recorder) - before
    dead = sum(1 for e in recorder.history.events if e < 0 and recorder.history.names[~e].startswith("aten._to_copy"))
    with torch.autocast("cuda", BF16):
        F.linear(x, w)

    assert inside == 1
    assert dead == 1
    assert casts(recorder) - before == 2


def test_regions_nest(recorder: Any) -> None:
    """Another type inside, none inside that, and each is itself again behind it."""
    x = made(8, 8)
    found = []
    with torch.autocast("cuda", FP16):
        found.append((x @ x).dtype)
        with torch.autocast("cuda", BF16):
            found.append((x @ x).dtype)
            with torch.autocast("cuda", enabled=False):
                found.append((x @ x).dtype)
            found.append((x @ x).dtype)
        found.append((x @ x).dtype)
    found.append((x @ x).dtype)

    assert found == [FP16, BF16, FP32, BF16, FP16, FP32]


def test_gradients_come_back_in_the_weights_type(recorder: Any) -> None:
    """Backward of a cast weight gives an fp32 gradient."""
    w = weight(trained=True)
    with torch.autocast("cuda", BF16):
        loss = F.linear(made(4, 16), w).float().sum()
    loss.backward()

    assert w.grad.dtype is FP32


def test_the_cpu_keeps_its_own_autocast(recorder: Any) -> None:
    """CUDA's region does not touch tensors of the CPU, and the CPU's not those of the card."""
    real, x = torch.ones(4, 4), made(4, 4)
    with torch.autocast("cuda", FP16):
        assert (real @ real).dtype is FP32
    with torch.autocast("cpu", BF16):
        assert (real @ real).dtype is BF16
        assert (x @ x).dtype is FP32


def test_nothing_is_left_behind() -> None:
    """After a trace autocast is what it was, and holds no weight."""
    clear = torch.clear_autocast_cache
    with recording((8, 0)):
        w = weight(trained=True)
        with torch.autocast("cuda", BF16):
            F.linear(made(4, 16), w)

    assert clear is torch.clear_autocast_cache
    assert not torch.is_autocast_enabled(autocast.NAME)
    assert not torch.is_autocast_enabled("cuda")
    assert autocast._casts == {}
