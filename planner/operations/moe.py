"""Routed experts as transformers runs them on fused parameters. Filled in with the families that need it."""

from __future__ import annotations

from collections.abc import Callable

from planner.architecture.decoder import Mlp, Moe
from planner.operations.linear import Linear
from planner.schedule import Tape
from planner.tensors import Tensor


def moe(t: Tape, x: Tensor, block: Moe, linears: dict[str, Linear], dense: Callable[[Tensor, Mlp], Tensor]) -> Tensor:
    raise NotImplementedError
