"""
The closed form against an independent oracle that runs the real training step on fake CUDA tensors.

`golden/<model>.json` holds what the oracle said, with its command line and versions; `run_probe.py` writes it. Allocated peaks
are compared as the allocator counts them; what one more layer saves for backward, and what rests in memory, to the byte.
"""

from __future__ import annotations

import json
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from planner.architecture import build_spec
from planner.device import Device
from planner.engines.analytic import Analysis, analyse
from planner.ledger import Category, Phase
from planner.recipe import make_recipe
from planner.stack import LATEST, Stack, resolve
from tests.oracle.matrix import MODELS, runs

GOLDEN = Path(__file__).with_name("golden")
GIB = 1 << 30
RESTING = {Category.PARAMETER, Category.QUANT_STATE, Category.ADAPTER, Category.OPTIMIZER_STATE, Category.BUFFER}
MEDIAN, WORST = 0.003, 0.01
FAST_MODELS = ("llama-2-7b", "qwen2.5-7b", "gemma-2-9b", "gpt2-xl")


@cache
def document(name: str) -> dict[str, Any]:
    """One golden file; its rows by name."""
    content: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    content["runs"] = {row["name"]: row for row in content["runs"] if "error" not in row["figures"]}
    return content


NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))


def is_fast(model: str, run: str) -> bool:
    """A few seconds' worth: the small shape of four models, and one run of each of the others."""
    return "/1x512" in run if model in FAST_MODELS else run in ("qlora/non-reentrant/sdpa/1x512", "lora/none/eager/1x512")


def cases() -> list[Any]:
    """Every run of every model; all but the fast ones are marked slow."""
    return [
        pytest.param(name, run, id=f"{name}/{run}", marks=() if is_fast(name, run) else pytest.mark.slow)
        for name in NAMES
        for run in document(name)["runs"]
    ]


def config_with(content: dict[str, Any], layers: int) -> dict[str, Any]:
    """The model's config.json with so many layers."""
    config = dict(content["config"])
    config["n_layer" if "n_layer" in config else "num_hidden_layers"] = layers
    if types := config.get("layer_types"):
        config["layer_types"] = [types[i % len(types)] for i in range(layers)]
    return config


@cache
def analysis(name: str, run: str, more_layers: int = 0) -> Analysis:
    """What the closed form says of a run."""
    content = document(name)
    row = content["runs"][run]
    spec = build_spec(config_with(content, content["layers"] + more_layers), id=name, source="file")
    stack = Stack({**LATEST.versions, **content["versions"]}, "as measured")
    capability = tuple(row["compute_capability"])
    device = Device("Tesla T4" if capability < (8, 0) else "NVIDIA A100", 80 * GIB, capability, bf16=capability >= (8, 0))
    return analyse(spec, resolve(make_recipe(**row["recipe"]), stack, spec.dtype), stack, device)


def figures(name: str, run: str) -> dict[str, int]:
    """What the oracle says of a run."""
    numbers: dict[str, int] = document(name)["runs"][run]["figures"]
    return numbers


def saved_bytes(found: Analysis) -> int:
    """What lives when backward begins, and does not rest in memory anyway."""
    book = found.ledger
    begin = next(span.begin for span in book.timeline if span.phase is Phase.BACKWARD)
    return sum(a.nbytes for a in book.live_at(begin) if a.category not in RESTING)


def error(name: str, run: str) -> float:
    """Relative error of the allocated peak."""
    return analysis(name, run).ledger.peak().nbytes / figures(name, run)["allocated_peak_bytes"] - 1


@pytest.mark.parametrize(("name", "run"), cases())
def test_allocated_peak_is_within_one_percent(name: str, run: str):
    """No run's allocated peak is further than 1 % from the oracle's."""
    assert abs(error(name, run)) <= WORST, f"{error(name, run):+.3%}"


@pytest.mark.parametrize(("name", "run"), cases())
def test_saved_bytes_of_a_layer_are_exact(name: str, run: str):
    """What one more layer keeps alive between forward and backward agrees to the byte."""
    expected = figures(name, run)["saved_per_layer_bytes"]

    assert expected == saved_bytes(analysis(name, run, 1)) - saved_bytes(analysis(name, run))


@pytest.mark.parametrize(("name", "run"), cases())
def test_resting_memory_is_exact(name: str, run: str):
    """What stays allocated from a step to the next agrees to the byte, but for what the allocator does not split."""
    assert figures(name, run)["rounded_steady_bytes"] == analysis(name, run).steady_bytes


def test_the_median_error_of_the_fast_runs():
    """Half of the fast runs are within 0.3 %."""
    errors = [abs(error(name, run)) for name in NAMES for run in document(name)["runs"] if is_fast(name, run)]

    assert statistics.median(errors) <= MEDIAN


@pytest.mark.slow
def test_the_median_error_of_the_whole_matrix():
    """Half of all runs are within 0.3 %, in every family and over all."""
    errors = {name: [abs(error(name, run)) for run in document(name)["runs"]] for name in NAMES}
    medians = {name: statistics.median(values) for name, values in errors.items()}

    assert {name: value for name, value in medians.items() if value > MEDIAN} == {}
    assert statistics.median(value for values in errors.values() for value in values) <= MEDIAN


def test_golden_figures_answer_the_matrix():
    """Every model and run of the matrix has its row, in the same words."""
    assert sorted(model.name for model in MODELS) == NAMES
    for model in MODELS:
        expected = {run.name: json.loads(json.dumps(run.recipe(model))) for run in runs(model)}
        assert expected == {name: row["recipe"] for name, row in document(model.name)["runs"].items()}
