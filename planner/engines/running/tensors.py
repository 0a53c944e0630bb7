"""What the tensors are that something holds by name: parameters, their statistics, buffers, gradients, optimizer states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import bitsandbytes
import torch
from torch import nn

from planner.engines.running.books import Books
from planner.engines.running.layers import Instances
from planner.ledger import Category


def name_model(model: nn.Module, books: Books, instances: Instances | None = None) -> None:
    """Say what every tensor is that a model holds."""

    def hold(x: Any, name: str, category: Category) -> None:
        if isinstance(x, torch.Tensor):
            books.hold_by_name(x, name, path, category, _owner(path, instances))

    for path, module in model.named_modules():
        books.paths[id(module)] = path
        is_added = "lora_" in path or "modules_to_save" in path
        for name, buffer in module.named_buffers(recurse=False):
            hold(buffer, name, Category.BUFFER)
        for name, param in module.named_parameters(recurse=False):
            hold(param, name, Category.ADAPTER if is_added or name.startswith("lora_") else Category.PARAMETER)
            for part, statistic in _statistics(getattr(param, "quant_state", None)):
                hold(statistic, f"{name}.{part}", Category.QUANT_STATE)
            hold(getattr(param, "SCB", None), f"{name}.SCB", Category.QUANT_STATE)


def name_map(books: Books) -> None:
    """Say what the map is that all doubly quantised weights share."""
    found = bitsandbytes.functional.name2qmap.get("dynamic")
    if isinstance(found, torch.Tensor):
        books.hold_by_name(found, "shared dynamic map", "bitsandbytes", Category.QUANT_STATE, None)


def _statistics(state: Any) -> Iterator[tuple[str, Any]]:
    """The tensors of a bitsandbytes QuantState."""
    for part in ("absmax", "code", "offset"):
        yield f"quant_state.{part}", getattr(state, part, None)
    nested = getattr(state, "state2", None)
    if nested is not None:
        for part in ("absmax", "code"):
            yield f"quant_state.state2.{part}", getattr(nested, part, None)


def name_gradients(model: nn.Module, books: Books, instances: Instances | None = None) -> None:
    """Say which tensors are a model's gradients."""
    for name, p in model.named_parameters():
        if p.grad is not None:
            path, _, leaf = name.rpartition(".")
            books.hold_by_name(p.grad, f"gradient of {leaf}", path, Category.GRADIENT, _owner(name, instances))


def name_states(
    optimizer: torch.optim.Optimizer, models: Iterable[nn.Module], books: Books, instances: Instances | None = None
) -> None:
    """Say which tensors are an optimizer's states; tables that bitsandbytes shares among parameters belong to no layer."""
    names = {id(p): name for model in models for name, p in model.named_parameters()}
    for p, state in optimizer.state.items():
        name = names.get(id(p), "parameter")
        path, _, leaf = name.rpartition(".")
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                is_shared = key.startswith("qmap")
                owner = None if is_shared else _owner(name, instances)
                where, what = ("", key) if is_shared else (path, f"{key} of {leaf}")
                books.hold_by_name(value, what, where, Category.OPTIMIZER_STATE, owner)


def _owner(name: str, instances: Instances | None) -> int | None:
    return instances.of_name(name) if instances else None
