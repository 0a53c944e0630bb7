"""Follows the storages that operations make, so that a test can say how many bytes were alive at once."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch")
modes = pytest.importorskip("torch.utils._python_dispatch")


class LiveStorages(modes.TorchDispatchMode):
    """
    Counts the storages born while it is active: the outputs of every operation, until they are collected.

    What a custom operation makes inside itself is not seen, only what it returns. CPU scalars that a CUDA run keeps on the host
    are counted only if they are asked for.
    """

    def __init__(self, *, scalars: bool = True) -> None:
        super().__init__()
        self.scalars = scalars
        self.nbytes = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = torch.utils._pytree.tree_leaves((args, kwargs))
        known = {t.untyped_storage()._cdata for t in given if isinstance(t, torch.Tensor)}
        if func is torch.ops.aten.lift_fresh.default:  # torch.tensor(...): its argument is the new tensor itself
            known = set()
        out = func(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._born(leaf, known)
        return out

    def restart(self) -> None:
        """Count the peak from here."""
        self.peak = self.nbytes

    def _born(self, tensor: torch.Tensor, known: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in known or key in self._seen or (not self.scalars and tensor.numel() == 1):
            return
        self._seen[key] = size
        self.nbytes += size
        self.peak = max(self.peak, self.nbytes)
        weakref.finalize(storage, self._dead, key)

    def _dead(self, key: int) -> None:
        self.nbytes -= self._seen.pop(key)
