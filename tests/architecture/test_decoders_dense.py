"""The structures that families without experts declare, over every bundled checkpoint of theirs."""

from __future__ import annotations

from typing import Any

import pytest

import model_specs
from planner.architecture import build_spec
from planner.architecture.decoder import Decoder, Mlp
from planner.dtypes import DType
from planner.engines.analytic import analyse
from planner.recipe import make_recipe
from planner.stack import LATEST, resolve
from tests.architecture.declared import checkpoints_of, declared

FAMILIES = {
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3", "phi", "phi3", "olmo", "olmo2", "olmo3", "granite",
    "smollm3", "cohere", "cohere2", "glm", "glm4", "stablelm", "starcoder2", "mistral3", "ministral3", "qwen2_vl", "qwen2_5_vl",
    "qwen3_vl",
}  # fmt: skip
CHECKPOINTS = checkpoints_of(FAMILIES)


def paths(decoder: Decoder) -> set[str]:
    """Every path that a structure names, from the root of the model."""
    found = {decoder.embedding, decoder.head}
    if decoder.norm is not None:
        found.add(decoder.norm.name)
    for layer in set(decoder.layers):
        attention, mlp = layer.attention, layer.mlp
        assert isinstance(mlp, Mlp)
        below = {attention.out, mlp.down}
        below |= {attention.fused} if attention.fused else {attention.q, attention.k, attention.v}
        below |= {mlp.fused} if mlp.fused else {mlp.gate, mlp.up}
        below |= {norm.name for norm in (*layer.norms, attention.q_norm, attention.k_norm) if norm is not None}
        found |= {decoder.layer_prefix + name for name in below if name}
    return {name for name in found if name}


@pytest.mark.parametrize(("config", "name"), CHECKPOINTS)
def test_the_structure_names_modules_that_exist(config: dict[str, Any], name: str):
    """Every path is in the module table, and no linear of the text decoder's layers is left out."""
    spec, decoder = build_spec(config, id=name), declared(config)
    table = {module.name for module in spec.modules}
    in_layers = {module.name for module in spec.modules if module.name.startswith(decoder.layer_prefix)}

    assert paths(decoder) <= table
    assert in_layers <= paths(decoder)


@pytest.mark.parametrize(("config", "name"), CHECKPOINTS)
def test_the_structure_has_as_many_layers_as_the_table(config: dict[str, Any], name: str):
    """Layers are counted alike in both."""
    decoder = declared(config)
    counted = {
        len(module.layers)
        for module in build_spec(config, id=name).modules
        if module.layers is not None and module.name.startswith(decoder.layer_prefix)
    }

    assert counted == {len(decoder.layers)}


@pytest.mark.parametrize(("config", "name"), CHECKPOINTS)
def test_the_default_recipe_is_planned(config: dict[str, Any], name: str):
    """The closed form answers, and a step needs more than what rests."""
    spec = build_spec(config, id=name)
    found = analyse(spec, resolve(make_recipe(), LATEST, spec.dtype or DType.BF16), LATEST)

    assert found.ledger.peak().nbytes > found.steady_bytes > 0


def test_windows_reach_the_layers_that_have_them():
    """Every sixth layer of Gemma 3, every fourth of OLMo 3 and Command R7B, every second of Gemma 2 sees the whole sequence."""
    full = {
        "google/gemma-3-4b-pt": (5, 11, 17, 23, 29),
        "allenai/Olmo-3-1025-7B": tuple(range(3, 32, 4)),
        "CohereLabs/c4ai-command-r7b-12-2024": tuple(range(3, 32, 4)),
        "google/gemma-2-2b": tuple(range(1, 26, 2)),
    }
    for name, expected in full.items():
        facts = model_specs.checkpoint(name)
        assert facts is not None
        layers = declared(facts["config"]).layers
        assert expected == tuple(i for i, layer in enumerate(layers) if layer.attention.sliding_window is None)
