"""A checkpoint as facts: its config and the table of its modules."""

from __future__ import annotations

import math
from enum import Enum
from functools import cached_property
from typing import Any

from planner.dtypes import DType
from planner.value import Value


class ModuleKind(str, Enum):
    """What a module is to the libraries that quantise it and wrap it: they look at its class, not at its name."""

    LINEAR = "linear"  # exactly torch.nn.Linear: bitsandbytes replaces it; weight [out, in]
    LINEAR_SUBCLASS = "linear_subclass"  # a subclass of nn.Linear: bitsandbytes leaves it, PEFT adapts it; weight [out, in]
    CONV1D = "conv1d"  # transformers' Conv1D: bitsandbytes replaces it; weight [in, out]
    EMBEDDING = "embedding"  # torch.nn.Embedding or a subclass; weight [rows, width]
    NORM = "norm"  # any normalisation with a weight
    CONVOLUTION = "convolution"  # nn.Conv1d, Conv2d, Conv3d
    EXPERTS = "experts"  # a bare 3-D parameter that stacks the experts of a layer; the name is the parameter's own
    PARAMETER = "parameter"  # any other bare parameter; the name is the parameter's own


class Module(Value):
    """
    One row of the module table: a module that owns parameters, once or in every layer of a stack.

    Attributes:
        name: Path as in `model.named_modules()`, `*` for the layer's index. Of EXPERTS and PARAMETER rows: the parameter's name.
        kind: What class of module it is.
        shape: Shape of its weight as the module stores it.
        bias: Number of bias elements; 0 where there is no bias.
        layers: The indices that `*` stands for; None for a module that occurs once.
        tied_to: Name of the row whose weight this one shares; its own weight then counts nothing (its bias does).
    """

    name: str
    kind: ModuleKind
    shape: tuple[int, ...]
    bias: int = 0
    layers: tuple[int, ...] | None = None
    tied_to: str | None = None

    @property
    def count(self) -> int:
        """How often the row occurs in the model."""
        return 1 if self.layers is None else len(self.layers)

    @cached_property
    def weight_numel(self) -> int:
        """Elements of one weight, shared or not."""
        return math.prod(self.shape)

    @property
    def in_features(self) -> int:
        """Width of the input of a linear, or of one expert's product (see `EXPERTS` shapes in `architecture`)."""
        return self.shape[0] if self.kind is ModuleKind.CONV1D else self.shape[-1]

    @property
    def out_features(self) -> int:
        """Width of the output of a linear."""
        return self.shape[1] if self.kind is ModuleKind.CONV1D else self.shape[-2]

    @property
    def is_linear(self) -> bool:
        """Whether PEFT can wrap it as a linear."""
        return self.kind in (ModuleKind.LINEAR, ModuleKind.LINEAR_SUBCLASS, ModuleKind.CONV1D)

    @property
    def num_parameters(self) -> int:
        """Parameters of all occurrences; a shared weight counts where it is owned."""
        return self.count * ((0 if self.tied_to else self.weight_numel) + self.bias)

    def paths(self) -> list[str]:
        """Every full name that the row stands for."""
        if self.layers is None:
            return [self.name]
        return [self.name.replace("*", str(i), 1) for i in self.layers]

    @property
    def path(self) -> str:
        """The first of the names that the row stands for."""
        return self.name if self.layers is None else self.name.replace("*", str(self.layers[0]), 1)


class Buffer(Value):
    """
    A tensor that a module registers with `register_buffer`.

    Attributes:
        name: Full name, `*` for the layer's index.
        shape: Its shape.
        dtype: Its type; None for the model's load dtype.
        persistent: Whether the checkpoint stores it.
        layers: As in `Module`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType | None = DType.FP32
    persistent: bool = False
    layers: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """How often the buffer occurs."""
        return 1 if self.layers is None else len(self.layers)

    @property
    def numel(self) -> int:
        """Elements of one occurrence."""
        return math.prod(self.shape)


class ModelSpec(Value, eq=False):
    """
    Facts about one checkpoint; nothing about memory. Two specs are the same only if they are one object.

    Attributes:
        id: How the user would name it: a Hub id, or a path.
        model_type: As config.json spells it.
        config: config.json as read.
        modules: The module table, in registration order.
        buffers: Its buffers.
        dtype: What the checkpoint is stored in.
        source: `bundled`, `hub`, `file` and what was read.
        published_parameters: What the Hub publishes as the count, where it is known.
    """

    id: str
    model_type: str
    config: dict[str, Any]
    modules: tuple[Module, ...]
    buffers: tuple[Buffer, ...] = ()
    dtype: DType = DType.BF16
    source: str = "file"
    published_parameters: int | None = None

    @cached_property
    def num_parameters(self) -> int:
        """Parameters of the whole model, shared ones counted once."""
        return sum(module.num_parameters for module in self.modules)

    @cached_property
    def by_name(self) -> dict[str, Module]:
        """The rows by their names. A name can have several rows (different layers, different shapes): the first is kept."""
        rows: dict[str, Module] = {}
        for module in self.modules:
            rows.setdefault(module.name, module)
        return rows
