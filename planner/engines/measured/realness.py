"""
Whether a training step is one: its loss is a number, gradients are there, weights change.

The memory of a step that did nothing proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn


class NotReal(Exception):
    """A step that trained nothing, or trained on no numbers; the message says which."""


class Check:
    """
    Looks at one step after the other.

    Args:
        trainable: What is trained, by name.

    Attributes:
        losses: Of every forward so far.
        looks: Whether gradients and weights are looked at too, which takes memory.
    """

    def __init__(self, trainable: Mapping[str, nn.Parameter]) -> None:
        self.trainable = trainable
        self.losses: list[float] = []
        self.looks = True
        self._sums: list[float] = []

    def loss(self, value: float) -> None:
        """
        A forward's loss.

        Raises:
            NotReal: It is no finite number.
        """
        self.losses.append(value)
        if not math.isfinite(value):
            raise NotReal(f"the loss is {value} in forward {len(self.losses)}: the model computes no numbers, so its step trains nothing")

    def before(self) -> None:
        """
        Backward is over.

        Raises:
            NotReal: A gradient is missing, is no number, or all of them are zero.
        """
        largest = 0.0
        for name, p in self.trainable.items():
            if p.grad is None:
                raise NotReal(f"`{name}` has no gradient after backward")
            found = float(p.grad.abs().max()) if p.grad.numel() else 0.0
            if not math.isfinite(found):
                raise NotReal(f"the gradient of `{name}` is {found}")
            largest = max(largest, found)
        if not largest:
            raise NotReal(f"all gradients of {len(self.trainable)} trained tensors are zero")
        self._sums = self._look()

    def after(self) -> None:
        """
        The optimizer has stepped.

        Raises:
            NotReal: No weight has changed.
        """
        if self._look() == self._sums:
            raise NotReal(f"the optimizer's step changed none of {len(self.trainable)} trained tensors")

    def _look(self) -> list[float]:
        """A number of each tensor that changes with it: each element counts with a weight of its own."""
        found = []
        for p in self.trainable.values():
            flat = p.detach().reshape(-1)
            weights = torch.linspace(1.0, 2.0, flat.numel(), dtype=torch.float32, device=flat.device)
            found.append(float(torch.dot(flat.float(), weights)))
        return found
