"""Routed experts on the tape against transformers' own modules on the CPU: what autograd saves for backward."""

from __future__ import annotations

import pytest

from planner.architecture.decoder import Moe
from planner.dtypes import DType
from planner.operations.experts import Context
from planner.operations.linear import Parameter
from planner.operations.moe import moe
from planner.schedule import Tape
from planner.tensors import Tensor

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

T, D, F, E, K = 64, 256, 128, 8, 2
ROUTING = {"mixtral": "mixtral", "qwen3_moe": "softmax", "olmoe": "softmax", "granitemoe": "granitemoe"}


def saved_by_autograd(model_type: str, *, trained: bool) -> int:
    """Bytes of every storage that the real block, beside its parameters, keeps for backward."""
    module = __import__(f"transformers.models.{model_type}.modeling_{model_type}", fromlist=["x"])
    config = transformers.AutoConfig.for_model(
        model_type, hidden_size=D, intermediate_size=F, moe_intermediate_size=F, num_experts=E, num_local_experts=E, num_experts_per_tok=K,
        norm_topk_prob=True, hidden_act="silu",
    )  # fmt: skip
    config._experts_implementation = "grouped_mm"
    name = next(n for n in dir(module) if n.endswith(("SparseMoeBlock", "MoeMoE")))
    block = getattr(module, name)(config).to(torch.bfloat16)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
        parameter.requires_grad_(trained)
    own = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(1, T, D, dtype=torch.bfloat16, requires_grad=True)
    own.add(x.untyped_storage().data_ptr())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = block(x)
    assert out.requires_grad
    return sum(kept.values())


def saved_on_the_tape(routing: str, *, trained: bool, act: str = "silu") -> int:
    """The same of the closed form: what lives once the block has returned, beside its output."""
    t = Tape()
    parameters = {
        "mlp.gate.weight": Parameter(D, E, Tensor(None, E * D, DType.BF16, trained)),
        "mlp.experts.gate_up_proj": Parameter(D, 2 * F, Tensor(None, 2 * E * D * F, DType.BF16, trained)),
        "mlp.experts.down_proj": Parameter(F, D, Tensor(None, E * D * F, DType.BF16, trained)),
    }
    x = Tensor(None, T * D, DType.BF16, requires_grad=True)
    context = Context(T, parameters, lambda name, x: x, lambda x, block: x)
    out = moe(t, x, Moe(E, K, F, act, routing=routing, normalised=True), context)
    alive = {event for event in t.events if event >= 0} - {~event for event in t.events if event < 0}
    assert out.storage is not None
    return sum(t.storages[index][0] for index in alive if index != out.storage.index)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("model_type", ROUTING)
def test_a_block_saves_what_autograd_saves(model_type: str, trained: bool):
    """Router and experts, to the byte."""
    assert saved_by_autograd(model_type, trained=trained) == saved_on_the_tape(ROUTING[model_type], trained=trained)
