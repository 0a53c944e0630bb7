"""Optimizer states and step temporaries, against the real optimizers on the CPU."""

from __future__ import annotations

import itertools
import math
import typing
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.dtypes import DType
from planner.formulas import optimizer
from planner.formulas.optimizer import VARIANTS, Parameter, State
from planner.recipe import Optimizer
from tests.live import LiveStorages

torch = pytest.importorskip("torch")

TORCH_DTYPES = {DType.BF16: torch.bfloat16, DType.FP16: torch.float16, DType.FP32: torch.float32}
BF16, FP32 = DType.BF16, DType.FP32

# In an order that goes up and down.
SHAPES = [(32, 64), (100,), (64, 128), (64, 128), (64, 128), (16, 256), (256,), (256,), (3, 32, 64), (65, 63)]


def make(name: str, parameters: list[list[Any]]) -> Any:
    """The real optimizer of a name, on groups of parameters."""
    groups = [{"params": group} for group in parameters]
    if name == "adafactor":
        library = pytest.importorskip("transformers.optimization")
        return library.Adafactor(groups, lr=1e-3, scale_parameter=False, relative_step=False)
    if name == "adafactor_torch":
        return torch.optim.Adafactor(groups)
    if name.startswith("sgd"):
        return torch.optim.SGD(groups, lr=1e-3, momentum=0.9 if "momentum" in name else 0, foreach=True)
    how = {"adamw_torch": {"foreach": True}, "adamw_torch_foreach": {"foreach": True}, "adamw_torch_single": {"foreach": False}}
    return torch.optim.AdamW(groups, lr=1e-3, **how.get(name, {"fused": True}))


def real_groups(groups: list[list[Parameter]]) -> list[list[Any]]:
    """Parameters with a gradient each."""
    made = [[torch.nn.Parameter(torch.ones(p.shape, dtype=TORCH_DTYPES[p.dtype])) for p in group] for group in groups]
    for parameter in (p for group in made for p in group):
        parameter.grad = torch.ones_like(parameter)
    return made


TORCH_NAMES = [name for name, variant in VARIANTS.items() if variant.library != "bitsandbytes"]


@pytest.mark.parametrize("name", TORCH_NAMES)
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_states_are_what_the_optimizer_keeps(name: str, dtype: DType) -> None:
    """Every state tensor by name and bytes, after one real step."""
    for shape in [(24, 40), (7,), (3, 8, 16)]:
        groups = real_groups([[Parameter(shape, dtype)]])
        running = make(name, groups)
        running.step()
        real = {k: v.numel() * v.element_size() for k, v in running.state[groups[0][0]].items() if isinstance(v, torch.Tensor)}
        formula = optimizer.states(VARIANTS[name], Parameter(shape, dtype))

        assert {s.name: s.device_bytes + s.managed_bytes + s.host_bytes for s in formula} == real


def test_the_step_is_on_the_host_unless_the_kernel_needs_it() -> None:
    """torch counts steps on the CPU; a fused kernel reads its counter on the card."""
    parameter = Parameter((8, 8), BF16)

    assert optimizer.states(VARIANTS["adamw_torch"], parameter)[0] == State("step", host_bytes=4)
    assert optimizer.states(VARIANTS["adamw_torch_fused"], parameter)[0] == State("step", device_bytes=4)


def real_bitsandbytes(name: str, shape: tuple[int, ...], dtype: DType) -> tuple[dict[str, int], dict[str, int]]:
    """States and shared maps that bitsandbytes itself makes for one parameter."""
    bnb = pytest.importorskip("bitsandbytes")
    variant = VARIANTS[name]
    family = bnb.optim.AdamW if "adamw" in name else bnb.optim.Lion
    parameter = torch.nn.Parameter(torch.ones(shape, dtype=TORCH_DTYPES[dtype]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # paging is refused on the CPU, with a warning
        running = family([parameter], optim_bits=variant.bits, is_paged=variant.paged)
        running.init_state(running.param_groups[0], parameter, 0, 0)
    tensors = {k: v.numel() * v.element_size() for k, v in running.state[parameter].items() if isinstance(v, torch.Tensor)}
    maps = {k: tensors.pop(k) for k in ("qmap1", "qmap2") if k in tensors}
    return tensors, maps


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([name for name, variant in VARIANTS.items() if variant.library == "bitsandbytes"]),
    st.one_of(st.integers(1, 9000), st.sampled_from([4095, 4096, 4097, 99_999, 100_000, 100_001, 262_144])),
    st.sampled_from([BF16, FP32]),
)
def test_bitsandbytes_states(name: str, numel: int, dtype: DType) -> None:
    """Every state and the shared maps, around both thresholds; on the card and in managed memory together."""
    tensors, maps = real_bitsandbytes(name, (numel,), dtype)
    formula = optimizer.states(VARIANTS[name], Parameter((numel,), dtype))
    shared = optimizer.shared_states(VARIANTS[name], [Parameter((numel,), dtype)])

    assert {s.name: s.device_bytes + s.managed_bytes for s in formula if s.device_bytes + s.managed_bytes} == tensors
    assert {s.name: s.device_bytes for s in shared if s.device_bytes} == maps


def test_pages_hold_what_bitsandbytes_asks_managed_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes' own choice of buffer, told that the parameter is on a card, for sizes around 100,000 elements."""
    bnb = pytest.importorskip("bitsandbytes")
    paged: list[int] = []

    def get_paged(*shape: int, dtype: Any, device: Any) -> None:
        assert device.type != "cpu"
        paged.append(math.prod(shape) * dtype.itemsize)

    monkeypatch.setattr(bnb.functional, "get_paged", get_paged)
    monkeypatch.setattr(bnb.functional, "fill", lambda *_: None)
    for numel in (4095, 4096, 99_999, 100_000, 250_000):
        for name, dtype in (("paged_adamw_8bit", torch.uint8), ("paged_adamw_32bit", torch.float32), ("adamw_8bit", torch.uint8)):
            variant, first = VARIANTS[name], torch.nn.Parameter(torch.ones(1))
            running = bnb.optim.AdamW([first], optim_bits=variant.bits, is_paged=variant.paged)
            on_card = torch.ones(numel, device="meta")
            paged.clear()
            if numel >= 4096:
                running.get_state_buffer(on_card, dtype=dtype)
            state1 = optimizer.states(variant, Parameter((numel,), BF16))[0]

            assert state1.managed_bytes == sum(paged)
            assert (state1.device_bytes == 0) is bool(paged)


def test_states_of_an_array_of_sizes() -> None:
    """The thresholds are arithmetic: a grid of sizes gives what each size gives."""
    sizes = np.array([1, 4095, 4096, 99_999, 100_000, 1 << 20])
    for name, variant in VARIANTS.items():
        if variant.rule is not optimizer.Rule.ADAFACTOR:
            grid = optimizer.states(variant, Parameter((sizes,), BF16))  # type: ignore[arg-type]
            single = [optimizer.states(variant, Parameter((int(n),), BF16)) for n in sizes]
            for i, state in enumerate(grid):
                for field in ("device_bytes", "managed_bytes", "host_bytes"):
                    values = np.broadcast_to(getattr(state, field), sizes.shape).tolist()
                    assert values == [int(getattr(s[i], field)) for s in single], (name, field)


def runs(group: list[Parameter]) -> list[tuple[Parameter, int]]:
    """Neighbours that are equal, counted."""
    return [(parameter, len(list(equal))) for parameter, equal in itertools.groupby(group)]


def measured_temporaries(name: str, groups: list[list[Parameter]]) -> int:
    """Bytes that the second real step holds at its peak beyond what it started with; scalars aside."""
    running = make(name, real_groups(groups))
    running.step()
    with LiveStorages(scalars=False) as live:
        running.step()
    return live.peak


ORDERS = [SHAPES, SHAPES[::-1], sorted(SHAPES, key=math.prod)]


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_single", "sgd", "sgd_momentum", "adafactor_torch", "adafactor"])
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_a_step_holds_what_the_real_step_holds(monkeypatch: pytest.MonkeyPatch, name: str, dtype: DType, order: int) -> None:
    """The real step's peak, for parameters in three orders: what one leaves behind meets the next. Storages are not rounded."""
    monkeypatch.setattr(optimizer, "allocated", lambda nbytes: nbytes)
    group = [Parameter(shape, dtype) for shape in ORDERS[order]]
    measured, formula = measured_temporaries(name, [group]), optimizer.step_temporaries(VARIANTS[name], [runs(group)])

    assert measured == formula


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_torch_single"])
def test_groups_and_types_of_a_step(name: str) -> None:
    """Two groups follow each other; two types in one group overlap. Sizes are whole blocks, as the allocator rounds."""
    decayed = [Parameter((512, 512), BF16), Parameter((256, 512), FP32)]
    plain = [Parameter((1024,), FP32)]

    assert measured_temporaries(name, [decayed, plain]) == optimizer.step_temporaries(
        VARIANTS[name], [runs(decayed), runs(plain)]
    )


def test_a_fused_step_makes_nothing() -> None:
    """One kernel, no tensor."""
    group = [Parameter(shape, FP32) for shape in SHAPES]

    assert measured_temporaries("adamw_torch_fused", [group]) == 0
    assert optimizer.step_temporaries(VARIANTS["adamw_torch_fused"], [runs(group)]) == 0
    assert optimizer.step_temporaries(VARIANTS["paged_adamw_8bit"], [runs(group)]) == 0
    assert optimizer.step_temporaries(VARIANTS["adamw_torch"], []) == 0


def test_every_optimizer_of_a_recipe_is_known() -> None:
    """What --optim accepts has a variant."""
    assert set(typing.get_args(Optimizer)) <= set(VARIANTS)


def test_names_mean_what_the_trainer_builds() -> None:
    """transformers' own table from names to optimizers."""
    pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    from transformers import TrainingArguments
    from transformers.trainer import Trainer
    from transformers.training_args import OptimizerNames

    for name, variant in VARIANTS.items():
        if name not in {known.value for known in OptimizerNames}:
            continue
        arguments = TrainingArguments("unused", optim=name, report_to=[], use_cpu=True)
        cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments)
        assert cls.__module__.split(".")[0] == variant.library, name
        assert kwargs.get("optim_bits", variant.bits) == variant.bits, name
        assert kwargs.get("is_paged", False) == variant.paged, name
        assert kwargs.get("fused", False) is (variant.library == "torch" and variant.loop is optimizer.Loop.KERNEL), name
        assert "foreach" not in kwargs, name


def test_the_trainers_keep_embeddings_states_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    bitsandbytes told as the Trainer tells it keeps an embedding's states in fp32 under an 8-bit optimizer, and makes no 8-bit maps.
    """
    bnb = pytest.importorskip("bitsandbytes")
    manager = bnb.optim.GlobalOptimManager
    monkeypatch.setattr(manager, "_instance", None)
    embedding = torch.nn.Embedding(128, 64)
    real = bnb.optim.AdamW(embedding.parameters(), optim_bits=8)
    manager.get_instance().register_module_override(embedding, "weight", {"optim_bits": 32})
    embedding.weight.grad = torch.ones_like(embedding.weight)
    real.step()
    told = Parameter((128, 64), DType.FP32, in_32_bits=True)
    found = {key: x.nbytes for key, x in real.state[embedding.weight].items() if isinstance(x, torch.Tensor) and x.numel() > 1}
    variant = optimizer.VARIANTS["adamw_8bit"]

    assert {state.name: state.device_bytes for state in optimizer.states(variant, told) if state.device_bytes} == found
    assert not any(state.device_bytes for state in optimizer.shared_states(variant, [told]))
