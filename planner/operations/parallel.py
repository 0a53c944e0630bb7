"""
Layers whose attention and MLP stand side by side, and StableLM's, which can be either.

As in `planner.operations.decoder`, a local name lives as long as it does in the modeling code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.operations.elementwise import add
from planner.tensors import Tensor

if TYPE_CHECKING:
    from planner.operations.decoder import Runner


def parallel(run: Runner, x: Tensor) -> Tensor:
    """
    attention(norm(x)) + mlp(norm(x)) + x.

    Source:
        transformers@5.23.0, models/phi/modeling_phi.py, PhiDecoderLayer.forward.
    """
    residual = x
    x = run.norm(run.layer.norms[0], x)
    attention = run.attention(x)
    mlp = run.mlp(x)
    return add(run.t, add(run.t, attention, mlp, "block outputs"), residual, "residual stream")


def parallel_onto_residual(run: Runner, x: Tensor) -> Tensor:
    """
    x + attention(norm(x)) + mlp(norm(x)): the same with the residual stream, and its dtype, in the first sum.

    Source:
        transformers@5.23.0, models/cohere/modeling_cohere.py, CohereDecoderLayer.forward; models/stablelm, use_parallel_residual.
    """
    residual = x
    x = run.norm(run.layer.norms[0], x)
    attention = run.attention(x)
    mlp = run.mlp(x)
    return add(run.t, add(run.t, residual, attention, "residual stream"), mlp, "residual stream")


def stablelm(run: Runner, x: Tensor) -> Tensor:
    """
    x + attention(norm(x)), then x + mlp(norm(x)); the first norm's output and the attention's keep their names to the end.

    Source:
        transformers@5.23.0, models/stablelm/modeling_stablelm.py, StableLmDecoderLayer.forward.
    """
    first, second = run.layer.norms
    residual = x
    x = run.norm(first, x)
    attention = run.attention(x)
    residual = add(run.t, residual, attention, "residual stream")
    mlp = run.mlp(run.norm(second, residual))
    x = add(run.t, residual, mlp, "residual stream")
    return x
