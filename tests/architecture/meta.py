"""The oracle of the module tables: what transformers itself instantiates on the meta device."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

import model_specs
from planner.architecture import build_spec
from planner.dtypes import DType
from planner.spec import ModelSpec, ModuleKind

# A value of these fields is a number of layers, and so may be cut.
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth", "encoder_layers", "decoder_layers")


@dataclass(frozen=True)
class Checkpoint:
    """A bundled checkpoint: its config, the classes that serve it, and the number of parameters that was published."""

    id: str
    config: dict[str, Any]
    architectures: list[str]
    published_parameters: int | None
    difference: int
    difference_reason: str | None


@dataclass(frozen=True)
class Owned:
    """A module with parameters of its own, or a bare parameter, under its full name."""

    kind: str
    shape: tuple[int, ...]
    bias: int
    tied_to: str | None


def checkpoints(model_types: Iterable[str]) -> list[Checkpoint]:
    """The bundled checkpoints of these families."""
    wanted = set(model_types)
    return [
        Checkpoint(
            facts["id"],
            facts["config"],
            facts["architectures"],
            facts["published_parameters"],
            facts["published_difference"] or 0,
            facts["published_difference_reason"],
        )
        for facts in model_specs.checkpoints()
        if facts["config"]["model_type"] in wanted
    ]


def shallow(config: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The same config with at most so many layers in every stack, its lists of layers cut to fit."""
    config = copy.deepcopy(dict(config))
    for section in [config, *(value for value in config.values() if isinstance(value, dict))]:
        for count in LAYER_COUNTS:
            depth = section.get(count)
            if isinstance(depth, int) and depth > layers:
                section[count] = layers
                for name, value in section.items():
                    if isinstance(value, list) and len(value) == depth:
                        section[name] = value[:layers]
    if config["model_type"] == "gpt_neo":
        kinds = config["attention_types"][0][0]
        config["attention_types"] = [[kinds, config["num_layers"] // len(kinds)]]
    return config


def compare_with_transformers(config: dict[str, Any], architectures: list[str]) -> None:
    """
    The table of a config is what transformers instantiates.

    Compared are names, order, kinds, shapes, biases, ties, the buffers, and the number of parameters.

    Raises:
        AssertionError: With one line for each difference.
    """
    spec = build_spec({"architectures": architectures, **config}, id="under test")
    model = instantiate(config, architectures)
    expected, actual = real_modules(model), expand(spec)
    problems = _differences("module", expected, actual)
    if not problems and list(expected) != list(actual):
        at, (name, here) = next((i, pair) for i, pair in enumerate(zip(expected, actual, strict=True)) if pair[0] != pair[1])
        problems.append(f"order: module {at} is {name} in transformers, {here} in the table")
    problems += _differences("buffer", real_buffers(model), expand_buffers(spec))
    total = sum(parameter.numel() for parameter in model.parameters())
    if total != spec.num_parameters:
        problems.append(f"parameters: {total:,} in transformers, {spec.num_parameters:,} in the table")
    assert not problems, "\n".join([f"{type(model).__name__}:", *problems])


def instantiate(config: Mapping[str, Any], architectures: list[str]) -> Any:
    """The model that a user loads, in bf16 on the meta device."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    known = transformers.AutoConfig.for_model(config["model_type"], **without(config, "model_type", "architectures"))
    known.architectures = architectures
    causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config["model_type"])
    with torch.device("meta"):
        if causal == architectures[0]:
            return transformers.AutoModelForCausalLM.from_config(known, dtype=torch.bfloat16)
        return getattr(transformers, architectures[0])._from_config(known, dtype=torch.bfloat16)


def without(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A config without some of its fields."""
    return {name: value for name, value in copy.deepcopy(dict(config)).items() if name not in names}


def real_modules(model: Any) -> dict[str, Owned]:
    """What owns the parameters of a real model, in the order in which it registers them."""
    owners: dict[int, str] = {}
    found: dict[str, Owned] = {}
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        if not own:
            continue
        kind = _kind(module)
        if kind is None:
            for name, parameter in own.items():
                full = f"{path}.{name}"
                kind_of_bare = ModuleKind.EXPERTS if _stacks_experts(module, parameter) else ModuleKind.PARAMETER
                found[full] = Owned(kind_of_bare.value, tuple(parameter.shape), 0, owners.get(id(parameter)))
                owners.setdefault(id(parameter), full)
            continue
        assert set(own) <= {"weight", "bias"}, f"{path} owns {sorted(own)}"
        bias = own["bias"].numel() if "bias" in own else 0
        found[path] = Owned(kind.value, tuple(own["weight"].shape), bias, owners.get(id(own["weight"])))
        owners.setdefault(id(own["weight"]), path)
    return found


def _kind(module: Any) -> ModuleKind | None:
    """What the libraries see in a module; None where its parameters are bare."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if type(module) is torch.nn.Linear:
        return ModuleKind.LINEAR
    for kind, classes in {
        ModuleKind.LINEAR_SUBCLASS: (torch.nn.Linear,),
        ModuleKind.CONV1D: (Conv1D,),
        ModuleKind.EMBEDDING: (torch.nn.Embedding,),
        ModuleKind.CONVOLUTION: (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d),
    }.items():
        if isinstance(module, classes):
            return kind
    if "norm" in type(module).__name__.lower() and "weight" in dict(module.named_parameters(recurse=False)):
        return ModuleKind.NORM
    return None


def _stacks_experts(module: Any, parameter: Any) -> bool:
    return parameter.dim() == 3 and re.search("expert|moe", type(module).__name__.lower()) is not None


def real_buffers(model: Any) -> dict[str, tuple[tuple[int, ...], str, bool]]:
    """Shape, dtype and persistence of each buffer; a dtype of `load` follows the model's."""
    import torch

    kept = model._keep_in_fp32_modules_strict or set()
    stored = set(model.state_dict())
    found = {}
    for name, buffer in model.named_buffers():
        # The loader keeps what this list names in fp32, which an instantiation without weights does not show.
        strict = any(re.search(rf"(^|\.){re.escape(module)}(\.|$)", name) for module in kept)
        follows = buffer.dtype is torch.bfloat16 and not strict
        dtype = "load" if follows else str(torch.float32 if strict else buffer.dtype).removeprefix("torch.")
        found[name] = (tuple(buffer.shape), dtype, name in stored)
    return found


def expand(spec: ModelSpec) -> dict[str, Owned]:
    """
    The rows of a table one by one, in registration order.

    Rows that share the text before their `*` are one stack: it stands where its first row stands, layer after layer.
    """
    stacks: dict[str, list[tuple[int, int, str, Owned]]] = {}
    order: list[str] = []
    for at, row in enumerate(spec.modules):
        stack = row.name.partition("*")[0] if row.layers is not None else f"{row.name} once {at}"
        if stack not in stacks:
            order.append(stack)
        for layer, path in zip(row.layers or (0,), row.paths(), strict=True):
            tied = row.tied_to.replace("*", str(layer), 1) if row.tied_to else None
            stacks.setdefault(stack, []).append((layer, at, path, Owned(row.kind.value, row.shape, row.bias, tied)))
    found: dict[str, Owned] = {}
    for stack in order:
        for _, _, path, owned in sorted(stacks[stack], key=lambda entry: entry[:2]):
            assert path not in found, f"the table has {path} twice"
            found[path] = owned
    return found


def expand_buffers(spec: ModelSpec) -> dict[str, tuple[tuple[int, ...], str, bool]]:
    """The buffers of a table one by one, as `real_buffers` gives them."""
    names = {DType.FP32: "float32", DType.FP16: "float16", DType.BF16: "bfloat16"}
    found = {}
    for buffer in spec.buffers:
        dtype = "load" if buffer.dtype is None else names.get(buffer.dtype, buffer.dtype.value)
        for layer in buffer.layers if buffer.layers is not None else (0,):
            found[buffer.name.replace("*", str(layer), 1)] = (buffer.shape, dtype, buffer.persistent)
    return found


def _differences(what: str, expected: Mapping[str, object], actual: Mapping[str, object], most: int = 12) -> list[str]:
    lines = [f"{what} {name}: missing in the table; transformers has {expected[name]}" for name in expected if name not in actual]
    lines += [f"{what} {name}: not in transformers; the table has {actual[name]}" for name in actual if name not in expected]
    for name, one in expected.items():
        if name in actual and actual[name] != one:
            lines.append(f"{what} {name}: {one} in transformers, {actual[name]} in the table")
    return lines if len(lines) <= most else [*lines[:most], f"and {len(lines) - most:,} more"]


def stored_parameters(checkpoint: Checkpoint) -> int:
    """Parameters that the table of a checkpoint counts, and what its file stores beside them for a known reason."""
    spec = build_spec(checkpoint.config, id=checkpoint.id)
    assert not checkpoint.difference or checkpoint.difference_reason, f"{checkpoint.id}: a difference without a reason"
    return spec.num_parameters + checkpoint.difference
