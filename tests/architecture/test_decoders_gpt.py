"""The structures that the families before Llama, and LFM2, declare, over every bundled checkpoint of theirs."""

from __future__ import annotations

from typing import Any

import pytest

import model_specs
from planner.architecture import build_spec
from planner.architecture.decoder import Decoder, Mlp
from planner.engines.analytic import analyse
from planner.errors import UnsupportedModelError
from planner.ledger import Phase
from planner.recipe import make_recipe
from planner.stack import LATEST, resolve
from tests.architecture.declared import checkpoints_of, declared

FAMILIES = {"gpt_neox", "gpt2", "gpt_bigcode", "opt", "falcon", "gptj", "gpt_neo", "bloom", "mpt", "lfm2"}
CHECKPOINTS = checkpoints_of(FAMILIES)


def paths(decoder: Decoder) -> set[str]:
    """Every path that a structure names, from the root of the model."""
    found = {decoder.embedding, decoder.head, decoder.positions, decoder.project_in, decoder.project_out}
    found |= {norm.name for norm in (decoder.norm, decoder.embedding_norm) if norm is not None}
    for layer in set(decoder.layers):
        attention, mlp = layer.attention, layer.mlp
        assert isinstance(mlp, Mlp)
        below = {attention.out, attention.convolution, mlp.gate, mlp.up, mlp.down}
        below |= {attention.fused} if attention.fused else {attention.q, attention.k, attention.v}
        below |= {norm.name for norm in (*layer.norms, attention.q_norm, attention.k_norm) if norm is not None}
        found |= {decoder.layer_prefix + name for name in below if name}
    return {name for name in found if name}


def peak(config: dict[str, Any], phase: Phase = Phase.BACKWARD, **knobs: Any) -> int:
    """Peak of a phase, in bytes."""
    spec = build_spec(config, id="a model")
    return analyse(spec, resolve(make_recipe(**knobs), LATEST, spec.dtype), LATEST).ledger.peaks[phase].nbytes


def config_of(name: str) -> dict[str, Any]:
    """The config of a bundled checkpoint."""
    found: dict[str, Any] = next(facts["config"] for facts in model_specs.checkpoints() if facts["id"] == name)
    return found


@pytest.mark.parametrize(("config", "name"), CHECKPOINTS)
def test_the_structure_names_the_modules_that_exist(config: dict[str, Any], name: str):
    """Every path is in the module table, and no module is left out."""
    assert paths(declared(config)) == {module.name for module in build_spec(config, id=name).modules}


@pytest.mark.parametrize(("config", "name"), CHECKPOINTS)
def test_the_structure_has_as_many_layers_as_the_table(config: dict[str, Any], name: str):
    """Layers are counted alike in both."""
    layers = {layer for module in build_spec(config, id=name).modules for layer in module.layers or ()}

    assert layers == set(range(len(declared(config).layers)))


@pytest.mark.parametrize(("config", "name"), CHECKPOINTS)
def test_the_default_recipe_is_planned(config: dict[str, Any], name: str):
    """The closed form answers, and a step needs more than what rests."""
    spec = build_spec(config, id=name)
    found = analyse(spec, resolve(make_recipe(), LATEST, spec.dtype), LATEST)

    assert found.ledger.peak().nbytes > found.steady_bytes > 0


@pytest.mark.parametrize("field", ["alibi", "bias"])
def test_an_unknown_falcon_is_refused_by_the_field_that_makes_it_so(field: str):
    """Falcon-RW's kind is named, not guessed."""
    with pytest.raises(UnsupportedModelError, match=field):
        declared({**config_of("tiiuae/falcon-7b"), field: True})


def test_falcon_7b_gains_nothing_from_sdpa_in_memory():
    """One key head for all sends it to PyTorch's math kernel, which keeps fp32 scores as eager attention does."""
    config = {**config_of("tiiuae/falcon-7b"), "num_hidden_layers": 2}
    B, S, H = 1, 2048, 71
    knobs = {"method": "lora", "batch_size": B, "seq_len": S, "gradient_checkpointing": False}
    none = peak({**config, "multi_query": False}, attn="sdpa", **knobs)

    assert peak(config, attn="sdpa", **knobs) - none > 4 * B * H * S * S


def test_gpt2_drops_out_unless_told_otherwise():
    """The class's dropouts of 0.1 cost masks, of one byte an element, and copies."""
    config = {**config_of("openai-community/gpt2"), "n_layer": 2}
    quiet = {**config, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    B, S, H = 1, 512, 12
    knobs = {"method": "lora", "batch_size": B, "seq_len": S, "gradient_checkpointing": False, "attn": "eager"}

    assert peak(config, **knobs) - peak(quiet, **knobs) > 2 * B * H * S * S
