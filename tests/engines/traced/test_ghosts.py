"""Tensors without data, against tensors with data on the CPU."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("transformers")

from planner.engines.traced.ghosts import CUDA, HOST, Ghost, card  # noqa: E402
from planner.engines.traced.run import recording  # noqa: E402
from planner.errors import UnavailableError  # noqa: E402

OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "transpose": lambda x: x.transpose(0, 2),
    "view": lambda x: x.view(6, 4),
    "reshape of a transposed": lambda x: x.transpose(0, 1).reshape(-1),
    "slice": lambda x: x[:, 1:, ::2],
    "select": lambda x: x[1],
    "expand": lambda x: x[:1].expand(5, 3, 4),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "unsqueeze": lambda x: x.unsqueeze(1),
    "permute and contiguous": lambda x: x.permute(2, 0, 1).contiguous(),
    "chunk": lambda x: x.chunk(2, dim=-1)[1],
    "add": lambda x: x + 1,
    "add of a transposed": lambda x: x.transpose(0, 2) + 1,
    "in place": lambda x: x.mul_(2),
    "half": lambda x: x.half(),
    "comparison": lambda x: x > 0,
    "same type": lambda x: x.float(),
    "double": lambda x: x.double(),
    "matrix product": lambda x: x @ x.transpose(1, 2),
    "sum": lambda x: x.sum(-1, keepdim=True),
    "softmax": lambda x: x.softmax(-1),
    "layer norm": lambda x: torch.nn.functional.layer_norm(x, (4,)),
    "silu": torch.nn.functional.silu,
    "cat": lambda x: torch.cat([x, x], 1),
    "stack": lambda x: torch.stack([x, x]),
    "topk": lambda x: x.topk(2).values,
    "argmax": lambda x: x.argmax(-1),
    "pad": lambda x: torch.nn.functional.pad(x, (0, 3)),
    "empty_like": lambda x: torch.empty_like(x.transpose(0, 1)),
    "new_zeros": lambda x: x.new_zeros(3, 2),
    "einsum": lambda x: torch.einsum("abc,abd->acd", x, x),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "cumsum": lambda x: x.cumsum(0),
    "tril": lambda x: x.tril(),
    "where": lambda x: torch.where(x > 0, x, 0.0),
}


def appearance(x: Any, out: Any) -> tuple[Any, ...]:
    """Everything that Python can see of a result, but its numbers and its device."""
    shares = x.untyped_storage()._cdata == out.untyped_storage()._cdata
    return tuple(out.shape), out.stride(), out.dtype, out.storage_offset(), out.untyped_storage().nbytes(), shares


@pytest.mark.parametrize("name", OPERATIONS)
def test_results_look_like_real_ones(recorder: Any, name: str) -> None:
    """Shape, strides, type, offset, bytes, and whether the storage is the argument's."""
    real, ghost = torch.randn(2, 3, 4), torch.randn(2, 3, 4, device="cuda")
    function = OPERATIONS[name]

    assert appearance(real, function(real)) == appearance(ghost, function(ghost))


def test_gradients_look_like_real_ones(recorder: Any) -> None:
    """A leaf's gradient has its shape, strides and type, through views and in-place operations."""
    found = []
    for device in ("cpu", "cuda"):
        x = torch.randn(4, 6, device=device, requires_grad=True)
        y = x.t().reshape(3, 8) * 2
        y[0] = 0.0
        y.relu_()
        y.sum().backward()
        found.append((tuple(x.grad.shape), x.grad.stride(), x.grad.dtype, x.is_leaf, y.grad_fn.name()))

    assert found[0] == found[1]


def test_python_sees_a_tensor_of_cuda(recorder: Any) -> None:
    """`device`, `is_cuda` and what is made like it say cuda:0; a copy to the CPU is on the host."""
    x = torch.empty(3, device="cuda")

    assert isinstance(x, Ghost)
    assert (x.device, x.is_cuda) == (CUDA, True)
    assert torch.zeros(2, device=x.device).device == torch.empty_like(x).device == CUDA
    assert (x.cpu().device, x.cpu().is_cuda) == (HOST, False)
    assert x.cpu().cuda().device == CUDA
    assert x.to("cuda") is x.to(device=torch.device("cuda")) is x.cuda() is x


def test_constructors_take_a_card_without_an_index(recorder: Any) -> None:
    """`torch.tensor` and its like, given `cuda` as text, as a device or by a context, as a script writes it."""
    for device in ("cuda", torch.device("cuda"), "cuda:0"):
        assert torch.tensor([1, 2], device=device).device == CUDA
        assert torch.as_tensor([1.0], device=device).device == CUDA
    with torch.device("cuda"):
        assert torch.tensor(1.0).device == torch.zeros(2).device == CUDA
    assert torch.tensor(1.0).device == HOST


def test_modules_move_to_the_card(recorder: Any) -> None:
    """`module.to`, `module.cuda` and `torch.device("cuda")` as a context put every parameter and buffer there."""
    made = [torch.nn.BatchNorm1d(4).to("cuda"), torch.nn.BatchNorm1d(4).cuda(), torch.nn.BatchNorm1d(4, device="cuda")]
    with torch.device("cuda"):
        made.append(torch.nn.BatchNorm1d(4))

    for module in made:
        assert {CUDA} == {x.device for x in (*module.parameters(), *module.buffers())}
        assert all(isinstance(p, torch.nn.Parameter) and p.requires_grad for p in module.parameters())


def test_data_can_be_swapped(recorder: Any) -> None:
    """`p.data = p.data.to(...)` leaves the parameter the same object, with another type and memory; its gradient follows."""
    p = torch.nn.Parameter(torch.randn(8, 8, device="cuda"))
    before = p
    p.data = p.data.to(torch.bfloat16)
    (p * 2).sum().backward()

    assert before is p
    assert torch.bfloat16 == p.dtype == p.meta.dtype == p.grad.dtype
    assert p.untyped_storage().nbytes() == 8 * 8 * 2


def test_data_of_another_kind_is_refused(recorder: Any) -> None:
    """A tensor with numbers cannot take a ghost's place."""
    p = torch.nn.Parameter(torch.randn(2, device="cuda"))

    with pytest.raises(AssertionError, match="cannot take the place"):
        p.data = torch.zeros(2)


def test_a_deep_copy_has_memory_of_its_own(recorder: Any) -> None:
    """Parameters stay parameters, and what was tied is tied in the copy."""
    module = torch.nn.Sequential(torch.nn.Linear(4, 4, device="cuda"), torch.nn.Linear(4, 4, device="cuda"))
    module[1].weight = module[0].weight
    copied = copy.deepcopy(module)

    assert isinstance(copied[0].weight, torch.nn.Parameter)
    assert copied[0].weight is copied[1].weight
    assert copied[0].weight is not module[0].weight
    assert copied[0].weight.untyped_storage()._cdata != module[0].weight.untyped_storage()._cdata


def test_the_card_answers_and_goes_away() -> None:
    """Inside, `torch.cuda` describes the card that is asked for; outside it is what it was."""
    facade = ("is_available", "device_count", "get_device_capability", "get_device_properties", "_lazy_init", "mem_get_info")
    before = [getattr(torch.cuda, name) for name in facade], torch.Tensor.to, torch.Tensor.cuda, gc.isenabled()
    lifts = torch._C._only_lift_cpu_tensors()
    with card((7, 5), 16 << 30, 40):
        properties = torch.cuda.get_device_properties(0)
        answers = torch.cuda.is_available(), torch.cuda.device_count(), torch.cuda.get_device_capability()
        emulated, bf16 = torch.cuda.is_bf16_supported(), torch.cuda.is_bf16_supported(including_emulation=False)
        memory = torch.cuda.mem_get_info()

    assert answers == (True, 1, (7, 5))
    assert (properties.total_memory, properties.multi_processor_count, memory[1]) == (16 << 30, 40, 16 << 30)
    assert (emulated, bf16) == (True, False)
    assert before == ([getattr(torch.cuda, name) for name in facade], torch.Tensor.to, torch.Tensor.cuda, gc.isenabled())
    assert lifts == torch._C._only_lift_cpu_tensors()


def test_everything_is_put_back_after_an_error() -> None:
    """A trace that fails leaves nothing behind."""
    available, to, foreach = torch.cuda.is_available, torch.Tensor.to, list(torch.utils._foreach_utils._foreach_supported_types)
    with pytest.raises(ZeroDivisionError), recording((8, 0)):
        torch.ones(3, device="cuda").div_(1 // 0)

    assert (available, to) == (torch.cuda.is_available, torch.Tensor.to)
    assert foreach == torch.utils._foreach_utils._foreach_supported_types
    assert gc.isenabled()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_a_ghost_after_its_trace_says_so() -> None:
    """An operation outside names itself and the reason."""
    with recording((8, 0)):
        x = torch.ones(3, device="cuda")

    with pytest.raises(RuntimeError, match=r"aten\.add.*after its trace has ended"):
        x + x


def test_the_host_goes_on_as_before(recorder: Any) -> None:
    """Tensors of the CPU have their numbers during a trace."""
    x = torch.arange(4.0)

    assert (x @ x).item() == 14.0
    assert type(x * 2) is torch.Tensor


def test_a_backend_that_is_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of who has it is told, and what to do."""
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "npu")

    with pytest.raises(UnavailableError, match="backend for extensions to `npu`") as error, card((8, 0), 1, 1):
        pass
    assert error.value.hint == "trace in a process of its own"


def test_a_process_that_uses_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace does not come between torch and a card that is in use."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    with pytest.raises(UnavailableError, match="already uses CUDA"), card((8, 0), 1, 1):
        pass


def test_a_torch_without_the_entrance(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old torch is named with the command that replaces it."""
    from torch.utils import backend_registration

    monkeypatch.delattr(backend_registration, "_setup_privateuseone_for_python_backend")

    with pytest.raises(UnavailableError, match=f"torch {torch.__version__.split('+')[0]}") as error, card((8, 0), 1, 1):
        pass
    assert "pip install" in str(error.value.hint)
