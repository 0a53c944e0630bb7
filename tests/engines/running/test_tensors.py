"""What is held by name: told apart from what nobody holds, by scope, owner and category."""

from __future__ import annotations

from typing import Any

import pytest

from planner.ledger import Category
from planner.repetition import Repetition

torch = pytest.importorskip("torch")
pytest.importorskip("bitsandbytes")
pytest.importorskip("transformers")

from planner.engines.running.layers import Instances  # noqa: E402
from planner.engines.running.tensors import name_gradients, name_model, name_states  # noqa: E402

C = Category


def named(recorder: Any, *categories: Category) -> dict[str, tuple[int, int | None]]:
    """Bytes and owner of what lives in some categories, by scope and name."""
    h = recorder.history
    return {f"{h.scopes[i]}|{h.names[i]}": (h.sizes[i], h.owners[i]) for i in set(recorder.live.values()) if h.categories[i] in categories}


def layered(count: int = 5) -> Any:
    """Layers in a list, and a head behind them."""
    layers = torch.nn.ModuleList([torch.nn.Linear(4, 4, bias=False) for _ in range(count)])
    return torch.nn.ModuleDict({"layers": layers, "head": torch.nn.BatchNorm1d(4)}).cuda()


INSTANCES = Instances("layers", Repetition(1, 1, 6))


def test_parameters_and_buffers(recorder: Any) -> None:
    """Under their module, with the instance of the layer that they are in."""
    model = layered()
    name_model(model, recorder, INSTANCES)

    assert named(recorder, C.PARAMETER) == {
        **{f"layers.{i}|weight": (64, owner) for i, owner in enumerate((None, 0, 1, 2, None))},
        "head|weight": (16, None),
        "head|bias": (16, None),
    }
    assert set(named(recorder, C.BUFFER)) == {"head|running_mean", "head|running_var", "head|num_batches_tracked"}


def test_adapters_are_told_apart(recorder: Any) -> None:
    """PEFT's names say so."""
    model = torch.nn.ModuleDict({
        "base_layer": torch.nn.Linear(4, 4, bias=False),
        "lora_A": torch.nn.ModuleDict({"default": torch.nn.Linear(4, 2, bias=False)}),
        "lora_embedding_A": torch.nn.ParameterDict({"default": torch.nn.Parameter(torch.zeros(2, 4))}),
        "modules_to_save": torch.nn.ModuleDict({"default": torch.nn.Linear(4, 4, bias=False)}),
    }).cuda()  # fmt: skip
    name_model(model, recorder)

    assert set(named(recorder, C.PARAMETER)) == {"base_layer|weight"}
    assert set(named(recorder, C.ADAPTER)) == {"lora_A.default|weight", "lora_embedding_A|default", "modules_to_save.default|weight"}


def test_gradients_follow_their_parameters(recorder: Any) -> None:
    """Name, bytes and owner."""
    model = layered(3)
    for layer in model["layers"]:
        layer(torch.ones(2, 4, device="cuda")).sum().backward()
    name_gradients(model, recorder, INSTANCES)

    assert named(recorder, C.GRADIENT) == {f"layers.{i}|gradient of weight": (64, owner) for i, owner in enumerate((None, 0, 1))}


def test_states_follow_their_parameters(recorder: Any) -> None:
    """Two for each; torch's counter of steps is on the host and is none."""
    model = layered(3)
    optimizer = torch.optim.AdamW(model["layers"].parameters(), foreach=False)
    for layer in model["layers"]:
        layer(torch.ones(2, 4, device="cuda")).sum().backward()
    optimizer.step()
    name_states(optimizer, [model], recorder, INSTANCES)

    assert named(recorder, C.OPTIMIZER_STATE) == {
        f"layers.{i}|{state} of weight": (64, owner) for i, owner in enumerate((None, 0, 1)) for state in ("exp_avg", "exp_avg_sq")
    }


def test_shared_tables_belong_to_nobody(recorder: Any) -> None:
    """bitsandbytes' maps serve every parameter."""
    bnb = pytest.importorskip("bitsandbytes")
    weights = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(64, 64, device="cuda")) for _ in range(2)])
    optimizer = bnb.optim.AdamW8bit(weights.parameters())
    sum((p * 1).sum() for p in weights).backward()
    optimizer.step()
    name_states(optimizer, [weights], recorder, Instances("", Repetition(0, 1, 4)))
    shared = {name: found for name, found in named(recorder, C.OPTIMIZER_STATE).items() if "qmap" in name}

    assert set(shared.values()) == {(1024, None)}
    assert all(name.startswith("|qmap") for name in shared)
