"""
A checkpoint that is nowhere: its tensors are made where the model will live, at the moment the loader reads them.

The libraries' loader runs as over a file (its order, its casts, its quantising one tensor by one), and nothing is downloaded. Never more
than what the loader holds at once is there in 16 bits.
"""

from __future__ import annotations

from typing import Any

import torch

SPREAD = 0.02
"""Standard deviation of the numbers: what most families initialise with; large weights would overflow, zeros would train nothing."""


class Slice:
    """
    One tensor of such a checkpoint, as safetensors' slices are read.

    Args:
        like: Its shape and dtype, on the meta device.
        device: Where it is made.

    Source:
        transformers@5.23.0, core_model_loading.py, _materialize_copy (`tensor[...]`, then `.to(device, dtype)`).
    """

    def __init__(self, like: torch.Tensor, device: str) -> None:
        self.shape, self.dtype, self.device = like.shape, like.dtype, device
        self.is_vector = like.dim() < 2

    def get_shape(self) -> list[int]:
        """As safetensors has it."""
        return list(self.shape)

    def __getitem__(self, _: Any) -> torch.Tensor:
        """The tensor, made now."""
        made = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        if not made.is_floating_point():
            return made.zero_()
        if self.is_vector:
            return made.fill_(1.0)
        return made.normal_(0.0, SPREAD)
