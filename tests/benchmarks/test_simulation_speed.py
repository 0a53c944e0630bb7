"""
The speed of whole simulated runs, as ratios to the plain replay in Python within one run of this file.

    pytest -m benchmark
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from planner import stack as stacks
from planner.allocator import AllocatorSettings, CachingAllocator, native
from planner.allocator.program import _run
from planner.architecture import build_spec
from planner.catalog import find_checkpoint
from planner.engines.analytic import analyse
from planner.recipe import Recipe, make_recipe
from planner.simulation import Simulation, Trial
from planner.unrolling import unroll_events

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler"),
]

MODELS = ("meta-llama/Llama-2-70b-hf", "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-0.6B")
PLAIN = AllocatorSettings()
ROUNDS = 7
# Another batch, from its recipe to its peaks: 17 to 21 times as fast as the plain replay alone, which lacks writing and unrolling.
LEAST = 10.0
# A recipe that was never asked for: planning it, writing and unrolling its history, all in Python, and the replay: 2 to 5 times.
LEAST_FRESH = 1.0


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compiled allocator, whatever was there before."""
    native.compile_to(path := tmp_path / "replay.so")
    monkeypatch.setattr(native._State, "library", native.Library(path))


def seconds(work: Callable[[], object]) -> float:
    """The median processor time of a few rounds."""
    times = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


@pytest.mark.parametrize("model", MODELS)
def test_a_simulated_run_is_many_times_faster_than_its_plain_replay(model: str):
    """On an endless card, each time something else: another batch, and a recipe that is new."""
    found = find_checkpoint(model)
    spec, stack = build_spec(found.config, id=found.id), stacks.parse_stack("latest")
    numbers = count(1)

    def simulated(recipe: Recipe) -> Trial:
        analysis = analyse(spec, stacks.resolve(recipe, stack, spec.dtype), stack)
        return Simulation(lambda: analysis.history, PLAIN).endless

    def another_batch() -> Trial:
        return simulated(make_recipe(rank=16, seq_len=1024 + 8 * next(numbers)))

    def another_recipe() -> Trial:
        return simulated(make_recipe(rank=16 + next(numbers), seq_len=1024))

    whole = unroll_events(analyse(spec, stacks.resolve(make_recipe(rank=16, seq_len=1024), stack, spec.dtype), stack).history)
    assert len(whole.program.events) == whole.program.num_events  # written out before the clock counts
    plain = seconds(lambda: _run(whole.program, whole.sizes, CachingAllocator()))
    for _ in range(3):
        another_batch()
    batch, fresh = seconds(another_batch), seconds(another_recipe)
    words = f"plain replay {1e3 * plain:.1f} ms, another batch {1e3 * batch:.1f} ms, a fresh recipe {1e3 * fresh:.1f} ms"

    assert plain >= LEAST * batch, words
    assert plain >= LEAST_FRESH * fresh, words
