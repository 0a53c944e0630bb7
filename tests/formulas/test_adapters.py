"""Adapters against the real PEFT: every trainable tensor by name and shape."""

from __future__ import annotations

from typing import Any

import pytest

from planner.dtypes import DType
from planner.formulas import adapters
from planner.formulas.blocks import in_dtype, total_bytes

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

BF16, FP32 = DType.BF16, DType.FP32
TORCH_DTYPES = {DType.BF16: torch.bfloat16, DType.FP16: torch.float16, DType.FP32: torch.float32}


class Experts(torch.nn.Module):
    """Stacked experts as transformers keeps them: [experts, out, in], or turned around."""

    def __init__(self, shape: tuple[int, ...], is_transposed: bool) -> None:
        super().__init__()
        self.gate_up_proj = torch.nn.Parameter(torch.zeros(shape))
        self.is_transposed = is_transposed


def real_adapter(module: Any, target: str = "", **config: Any) -> dict[str, tuple[int, ...]]:
    """The tensors that PEFT adds to one module, by their names below it."""
    names = {"target_modules": ["inner"]} if not target else {"target_modules": [], "target_parameters": [target]}
    model = peft.get_peft_model(torch.nn.ModuleDict({"inner": module}), peft.LoraConfig(**names, **config))
    return {
        name.split("inner.")[1].replace(".default", ""): tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rank", [1, 8, 300])
def test_lora_on_a_linear(rank: int, dora: bool, rslora: bool) -> None:
    """A, B and DoRA's magnitude; rsLoRA adds nothing; a rank above the widths is not cut."""
    K, M = 48, 80
    real = real_adapter(torch.nn.Linear(K, M), r=rank, use_dora=dora, use_rslora=rslora)

    assert real == dict(adapters.lora_linear(K, M, rank, dora=dora))


@pytest.mark.parametrize("dora", [False, True])
def test_lora_on_a_conv1d(dora: bool) -> None:
    """transformers' Conv1D stores its weight turned around; its adapter is a linear's."""
    from transformers.pytorch_utils import Conv1D

    K, M, r = 24, 72, 4
    real = real_adapter(Conv1D(M, K), r=r, use_dora=dora, fan_in_fan_out=True)

    assert real == dict(adapters.lora_linear(K, M, r, dora=dora))


@pytest.mark.parametrize("dora", [False, True])
def test_lora_on_an_embedding(dora: bool) -> None:
    """A spans the rows, B the width; the magnitude has the width."""
    V, D, r = 96, 32, 4
    real = real_adapter(torch.nn.Embedding(V, D), r=r, use_dora=dora)

    assert real == dict(adapters.lora_embedding(V, D, r, dora=dora))


@pytest.mark.parametrize("is_transposed", [False, True])
def test_lora_on_stacked_experts(is_transposed: bool) -> None:
    """The rank is multiplied by the number of experts; the axes follow `is_transposed`."""
    E, K, M, r = 6, 16, 40, 3
    shape = (E, K, M) if is_transposed else (E, M, K)
    real = real_adapter(Experts(shape, is_transposed), "inner.gate_up_proj", r=r)

    assert real == dict(adapters.lora_experts(E, K, M, r))


def test_lora_on_a_plain_matrix_parameter() -> None:
    """A two-dimensional parameter [out, in] is one expert."""
    K, M, r = 16, 40, 3
    real = real_adapter(Experts((M, K), is_transposed=False), "inner.gate_up_proj", r=r)

    assert real == dict(adapters.lora_experts(1, K, M, r))


@pytest.mark.parametrize("config", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_peft_refuses_dropout_and_dora_on_experts(config: dict[str, Any]) -> None:
    """What the docstring says PEFT refuses, it refuses."""
    with pytest.raises(ValueError, match="does not work with"):
        real_adapter(Experts((2, 8, 8), is_transposed=False), "inner.gate_up_proj", r=2, **config)


def test_llama_2_70b_all_linear_at_rank_16() -> None:
    """207,093,760 parameters over 80 layers, as PEFT counts them."""
    D, F, KV, r = 8192, 28672, 1024, 16
    targets = [(D, D), (D, KV), (D, KV), (D, D), (D, F), (D, F), (F, D)]
    layer = [tensor for K, M in targets for tensor in adapters.lora_linear(K, M, r)]

    assert 80 * sum(tensor.numel for tensor in layer) == 207_093_760
    assert 80 * total_bytes(in_dtype(layer, DType.BF16)) == 414_187_520
