"""The tables of compare, gpus and models."""

from __future__ import annotations

import pytest

from planner import api
from planner.render import compare, gpus, models
from planner.render.terminal import Terminal
from tests import fakes

LLAMA_7B, LLAMA_13B, LLAMA_70B = (f"meta-llama/Llama-2-{size}b-hf" for size in (7, 13, 70))


@pytest.fixture(autouse=True)
def _fake_engine(monkeypatch):
    monkeypatch.setattr("planner.engines.analytic.analyse", fakes.analyse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def tables() -> dict[str, list[str]]:
    """Each table at 80 columns."""
    return {
        "compare": compare.lines(api.compare([LLAMA_7B, LLAMA_13B, LLAMA_70B], stack="latest"), Terminal()),
        "compare-refused": compare.lines(api.compare([LLAMA_7B], loss="liger", stack="latest"), Terminal()),
        "gpus": gpus.lines(api.gpus(), None, Terminal()),
        "gpus-verdicts": gpus.lines(api.gpus(), api.verdicts(LLAMA_70B, rank=16, stack="latest"), Terminal()),
        "models-llama": models.lines(api.models("llama-2"), Terminal()),
    }


def test_tables_fit_80_columns():
    """No row is wider."""
    wide = [line for lines in tables().values() for line in lines if len(line) > 80]

    assert wide == []


@pytest.mark.parametrize("name", ["compare", "compare-refused", "gpus-verdicts", "models-llama"])
def test_tables_are_as_they_were(golden, name):
    """The printed tables, letter by letter."""
    golden(name, "\n".join(line.rstrip() for line in tables()[name]) + "\n")


def test_every_card_and_model_is_listed():
    """The catalogue is complete."""
    assert len(tables()["gpus"]) >= len(api.gpus()) + 2
    assert len(models.lines(api.models(), Terminal())) >= len(api.models()) + 2
