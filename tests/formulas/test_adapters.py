"""Adapters against the real PEFT: every trainable tensor by name and shape, and what DoRA's forward holds."""

from __future__ import annotations

from typing import Any

import pytest

from planner.dtypes import DType
from planner.formulas import adapters
from planner.formulas.blocks import TensorShape, in_dtype, total_bytes
from tests.live import LiveStorages

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


def test_modules_to_save_copy_the_module() -> None:
    """PEFT keeps the frozen original beside a trainable copy of the same shape and type."""
    V, D = 40, 16
    base = torch.nn.ModuleDict({"inner": torch.nn.Linear(D, D), "head": torch.nn.Linear(D, V, bias=False, dtype=torch.bfloat16)})
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["inner"], modules_to_save=["head"], r=2))
    heads = {name: p for name, p in model.named_parameters() if "head" in name}
    copy = adapters.saved_module((TensorShape("weight", (V, D)),))

    assert sorted(p.requires_grad for p in heads.values()) == [False, True]
    assert [tuple(p.shape) for p in heads.values() if p.requires_grad] == [tensor.shape for tensor in copy]
    assert {p.dtype for p in heads.values()} == {torch.bfloat16}


DORA_DTYPES = [  # of the adapter, the input, the base weight, and autocast
    (FP32, FP32, FP32, None), (BF16, BF16, BF16, None), (FP32, FP32, BF16, None), (FP32, FP32, BF16, BF16),
    (FP32, BF16, BF16, BF16), (BF16, BF16, BF16, BF16), (BF16, BF16, FP32, BF16),
]  # fmt: skip


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("dtypes", DORA_DTYPES)
def test_dora_forward_holds_what_the_real_layer_holds(dtypes: tuple[DType, ...], quantized: bool) -> None:
    """The real layer's peak, on one token: activations are small and come after the peak, the norm [M] beside it."""
    K, M, r = 512, 384, 4
    adapter, given, stored, autocast = dtypes
    layer, arguments, x, result = real_dora(K, M, r, dtypes, quantized)
    with LiveStorages() as live, torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
        layer(x, base_result=result, **arguments)
    moments = adapters.dora_forward(
        K, M, r, adapter_dtype=adapter, input_dtype=given, weight_dtype=stored, quantized=quantized, autocast_dtype=autocast,
        double_quant=quantized,
    )  # fmt: skip
    casts = 2 * r * (K + M) * (autocast is not None and adapter is FP32)  # autocast's of A and B, which the LoRA product uses too

    assert 0 <= live.peak - casts - max(map(total_bytes, moments)) <= M * 4


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("dtypes", DORA_DTYPES)
def test_dora_with_dropout_keeps_the_base_weight(dtypes: tuple[DType, ...], quantized: bool) -> None:
    """What autograd saves of a dense weight's size, the parameter itself aside, where the base result is computed again."""
    K, M = 96, 64
    _, given, stored, autocast = dtypes
    layer, arguments, x, _ = real_dora(K, M, 4, dtypes, quantized)
    parameter = arguments["base_layer"].weight.untyped_storage()._cdata
    saved: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if tensor.numel() == K * M and storage._cdata != parameter:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None), hooks:
        out = layer(x.requires_grad_(), base_result=None, **arguments)
    kept = adapters.dora_kept_weight(K, M, input_dtype=given, weight_dtype=stored, quantized=quantized, autocast_dtype=autocast)

    assert out.requires_grad
    assert sum(saved.values()) == total_bytes(kept)


def real_dora(K: int, M: int, r: int, dtypes: tuple[DType, ...], quantized: bool) -> Any:
    """A DoRA layer of PEFT, what its forward is given, an input and a base result."""
    from peft.tuners.lora.dora import DoraLinearLayer

    adapter, given, stored, _ = (TORCH_DTYPES.get(dtype) for dtype in dtypes)
    A, B = (torch.nn.Linear(*widths, bias=False, dtype=adapter) for widths in ((K, r), (r, M)))
    layer = DoraLinearLayer(fan_in_fan_out=False)
    layer.weight = torch.nn.Parameter(torch.ones(M, dtype=adapter))
    arguments = {"lora_A": A, "lora_B": B, "scaling": 2.0, "base_layer": real_base(K, M, stored, quantized)}
    return layer, arguments, torch.ones(1, K, dtype=given), torch.ones(1, M, dtype=given)


def real_base(K: int, M: int, dtype: Any, quantized: bool) -> Any:
    """A frozen base layer, plain or in NF4 with double quantisation."""
    if not quantized:
        return torch.nn.Linear(K, M, bias=False, dtype=dtype).requires_grad_(False)
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(K, M, bias=False, quant_type="nf4")
    weight = torch.randn(M, K, dtype=dtype)
    layer.weight = bnb.nn.Params4bit(weight, quant_type="nf4", compress_statistics=True).to("cpu")
    return layer
