"""The vocabulary in which a family declares its module table: one call a row."""

from __future__ import annotations

import math
from collections.abc import Iterable

from planner.dtypes import DType
from planner.spec import Buffer, Module, ModuleKind


class Table:
    """
    Rows in registration order, each under the prefix in force.

    >>> table = Table()
    >>> with_layers = table.within("model.layers.*.", range(2))
    >>> with_layers.linear("mlp.up_proj", 64, 256)
    >>> table.modules[0].name, table.modules[0].shape, table.modules[0].count
    ('model.layers.*.mlp.up_proj', (256, 64), 2)
    """

    def __init__(self) -> None:
        self.modules: list[Module] = []
        self.buffers: list[Buffer] = []
        self._prefix = ""
        self._layers: tuple[int, ...] | None = None

    def within(self, prefix: str, layers: Iterable[int] | None = None) -> Table:
        """The same table, writing under a longer prefix; with layers, the prefix holds the `*` that they stand for."""
        inner = Table()
        inner.modules, inner.buffers = self.modules, self.buffers
        inner._prefix = self._prefix + prefix
        inner._layers = tuple(layers) if layers is not None else self._layers
        return inner

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool = False, tied_to: str | None = None) -> None:
        """`nn.Linear(inputs, outputs)`: weight [outputs, inputs]."""
        self._add(name, ModuleKind.LINEAR, (outputs, inputs), outputs if bias else 0, tied_to)

    def linear_subclass(self, name: str, inputs: int, outputs: int, *, bias: bool = False, tied_to: str | None = None) -> None:
        """A subclass of `nn.Linear`, which bitsandbytes does not replace: weight [outputs, inputs]."""
        self._add(name, ModuleKind.LINEAR_SUBCLASS, (outputs, inputs), outputs if bias else 0, tied_to)

    def conv1d(self, name: str, inputs: int, outputs: int) -> None:
        """transformers' `Conv1D(outputs, inputs)`: weight [inputs, outputs], always with a bias."""
        self._add(name, ModuleKind.CONV1D, (inputs, outputs), outputs)

    def embedding(self, name: str, rows: int, width: int, *, tied_to: str | None = None) -> None:
        """`nn.Embedding(rows, width)`."""
        self._add(name, ModuleKind.EMBEDDING, (rows, width), 0, tied_to)

    def norm(self, name: str, width: int | tuple[int, ...], *, bias: bool = False) -> None:
        """A normalisation with a weight [width] (or of a shape, where each head has its own), and with a bias or without."""
        shape = (width,) if isinstance(width, int) else width
        self._add(name, ModuleKind.NORM, shape, math.prod(shape) if bias else 0)

    def convolution(self, name: str, shape: tuple[int, ...], *, bias: bool = False) -> None:
        """`nn.Conv1d`, `Conv2d` or `Conv3d` with a weight [out channels, in channels / groups, kernel...]."""
        self._add(name, ModuleKind.CONVOLUTION, shape, shape[0] if bias else 0)

    def experts(self, name: str, shape: tuple[int, int, int]) -> None:
        """A bare parameter that stacks the experts of a layer: [experts, ., .]."""
        self._add(name, ModuleKind.EXPERTS, shape)

    def parameter(self, name: str, shape: tuple[int, ...]) -> None:
        """Any other bare parameter."""
        self._add(name, ModuleKind.PARAMETER, shape)

    def buffer(
        self, name: str, shape: tuple[int, ...], dtype: DType | None = DType.FP32, *, persistent: bool = False
    ) -> None:
        """A registered buffer; dtype None follows the model's load dtype."""
        if self._layers != ():
            self.buffers.append(Buffer(self._prefix + name, shape, dtype, persistent, self._layers))

    def _add(
        self, name: str, kind: ModuleKind, shape: tuple[int, ...], bias: int = 0, tied_to: str | None = None
    ) -> None:
        if self._layers != ():  # a stack without layers, as where a model has no dense ones: no row
            self.modules.append(Module(self._prefix + name, kind, shape, bias, self._layers, tied_to))
