"""The bundled checkpoints of some families, and the structures that these declare for them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

import model_specs
from planner.architecture import Fields, family_of
from planner.architecture.decoder import Decoder


def checkpoints_of(families: Collection[str]) -> list[Any]:
    """(config, id) of every bundled checkpoint of these families, as parameters of a test."""
    return [
        pytest.param(facts["config"], facts["id"], id=facts["id"])
        for facts in model_specs.checkpoints()
        if facts["config"]["model_type"] in families
    ]


def declared(config: dict[str, Any]) -> Decoder:
    """The structure of a checkpoint."""
    decoder = family_of(config["model_type"]).decoder
    assert decoder is not None
    return decoder(Fields(config))
