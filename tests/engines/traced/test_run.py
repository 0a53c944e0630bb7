"""
Whole traces against published measurements of real cards, and against the golden figures of an oracle that was written apart.

No constant of the engine comes from either.
"""

from __future__ import annotations

import statistics
from functools import cache, lru_cache
from typing import Any

import pytest

from planner import Report, estimate
from planner.bookkeeping import steady_bytes
from planner.device import Device
from planner.dtypes import DType
from planner.errors import UnavailableError, UnsupportedModelError
from planner.history import History
from planner.ledger import Ledger, Phase
from planner.recipe import make_recipe
from planner.spec import ModelSpec
from planner.stack import resolve
from planner.units import GIB, round_up
from tests.engines.traced.runs import A100, T4, books, installed, planned, traced
from tests.measurements import published
from tests.measurements.published import Run
from tests.oracle.cases import NAMES, document
from tests.oracle.matrix import LAYERS, MODELS

torch = pytest.importorskip("torch")

from planner.engines.traced import trace_run  # noqa: E402

PEAK, SMALL_PEAK, PHASE, RESERVED = 0.005, 0.012, 0.005, 0.06
A100_STEADY, A100_PEAK = 0.0002, 0.005
GOLDEN_MEDIAN, GOLDEN_WORST, GOLDEN_WORST_UNDER_2_GIB = 0.001, 0.005, 0.012
RACES = {"t4-0915-22": 0.07}
"""Reserved further off than 6 %: the loader of that stack quantised in several threads, and which came first is not known."""
FAST_T4 = ("t4-0915-00", "t4-0915-05", "t4-0915-19", "t4-0915-24", "t4-0915-39")
FAST_A100 = ("a100-fms-008", "a100-fms-034")


def rows(name: str, fast: tuple[str, ...]) -> list[Any]:
    """The published runs of a card; all but a few are slow."""
    return [pytest.param(run, id=run.id, marks=() if run.id in fast else pytest.mark.slow) for run in published.runs(name)]


@cache
def report(run_id: str, card: str, engine: str = "traced", stack: str = "auto") -> Report:
    """The estimate of a published run by one engine."""
    run = next(run for run in published.runs(card) if run.id == run_id)
    return estimate(run.model, gpu=run.gpu, stack=stack, engine=engine, **run.recipe)


def errors(run: Run, card: str) -> dict[str, float]:
    """Relative errors of the trace."""
    found = published.predicted(report(run.id, card))
    return {name: found[name] / size - 1 for name, size in run.measured.items() if name in found}


@pytest.mark.parametrize("run", rows("T4", FAST_T4))
def test_runs_on_a_t4(run: Run) -> None:
    """The allocated peak and the peaks of forward and backward; reserved, but for a race of that stack's loader."""
    found = errors(run, "T4")
    is_small = run.measured["allocated_peak_bytes"] < 2 * GIB

    assert abs(found["allocated_peak_bytes"]) <= (SMALL_PEAK if is_small else PEAK)
    assert abs(found["forward_peak_bytes"]) <= PHASE
    assert abs(found["backward_peak_bytes"]) <= PHASE
    assert abs(found["reserved_peak_bytes"]) <= RACES.get(run.id, RESERVED)
    assert found["process_peak_bytes"] >= -0.05


@pytest.mark.slow
def test_medians_on_a_t4() -> None:
    """Half of the runs within 0.1 % of the allocated peak, and within 2 % of what is reserved."""
    found = [errors(run, "T4") for run in published.runs("T4")]

    assert statistics.median(abs(error["allocated_peak_bytes"]) for error in found) <= 0.001
    assert statistics.median(abs(error["reserved_peak_bytes"]) for error in found) <= 0.02


def tensors_at_rest(found: Report) -> int:
    """Bytes of the tensors that live behind the last update, in blocks of 512 bytes."""
    assert found.history is not None
    assert found.ledger is not None
    rows, step = found.ledger.rows, max(s.end for s in found.ledger.timeline if s.phase is Phase.OPTIMIZER_STEP) - 1
    lives = [begin <= step < end for begin, end in zip(rows.begins, rows.ends, strict=True)]
    return sum(round_up(size, 512) for size, is_alive in zip(found.history.sizes, lives, strict=True) if is_alive)


@pytest.mark.parametrize("run", rows("A100", FAST_A100))
def test_runs_on_an_a100(run: Run) -> None:
    """
    What rests between steps, and the peak, with what the closed form says that the versions of that run did otherwise.

    A trace runs what is installed; those runs' transformers copied the logits of the loss, their PEFT left other parameters in fp32,
    and their loader quantised without leaving 4.5 MiB of blocks that the allocator does not split.
    """
    stack = ",".join(f"{package}=={version}" for package, version in published.document("A100")["stack"].items())
    theirs, ours = (report(run.id, "A100", "analytic", versions) for versions in (stack, "auto"))
    trace = report(run.id, "A100")
    older = theirs.peak.allocated_bytes - ours.peak.allocated_bytes
    resting = theirs.steady_bytes - ours.steady_bytes

    assert abs((tensors_at_rest(trace) + resting) / run.measured["steady_bytes"] - 1) <= A100_STEADY
    assert abs((trace.peak.allocated_bytes + older) / run.measured["allocated_peak_bytes"] - 1) <= A100_PEAK


def test_a_full_fine_tune_is_the_published_one() -> None:
    """Mistral-7B on an A100, in which no version matters: 72.4 GB, a few blocks away."""
    run = next(run for run in published.runs("A100") if run.id == "a100-fms-008")
    found = errors(run, "A100")

    assert abs(found["allocated_peak_bytes"]) <= 0.0001
    assert abs(found["steady_bytes"]) <= 0.0001


def tensor_highs(history: History) -> dict[Phase, int]:
    """The most bytes of tensors that live in each phase, in blocks of 512 bytes, whatever blocks the allocator finds for them."""
    sizes = [round_up(size, 512) for size in history.sizes]
    alive, curve = 0, []
    for event in history.events:
        alive += sizes[event] if event >= 0 else -sizes[~event]
        curve.append(alive)
    highs: dict[Phase, int] = {}
    for stretch in history.stretches:
        highs[stretch.phase] = max(highs.get(stretch.phase, 0), *curve[stretch.begin : stretch.end], curve[max(stretch.begin - 1, 0)])
    return highs


@lru_cache(maxsize=8)
def golden(name: str, run: str) -> tuple[dict[str, int], History, Ledger]:
    """The oracle's figures of a run, and its trace."""
    model = next(model for model in MODELS if model.name == name)
    row = document(name)["runs"][run]
    spec = ModelSpec(name, model.model_type, model.config(LAYERS), ())
    recipe = resolve(make_recipe(**row["recipe"]), installed(), DType.BF16)
    device = Device("the oracle's", 80 * GIB, tuple(row["compute_capability"]))
    history = trace_run(spec, recipe, installed(), device, every_layer=True).history
    return row["figures"], history, books(history)


FAST_GOLDEN = {
    "llama-2-7b": "qlora/non-reentrant/sdpa/1x512",
    "gpt2-xl": "lora/none/sdpa/1x512/named-targets",
    "mixtral-8x7b": "full/none/sdpa/1x512",
    "gemma-2-9b": "lora/non-reentrant/eager/1x512/named-targets/turing",
}


def golden_cases() -> list[Any]:
    """A few of the oracle's runs; all of them are slow."""
    return [
        pytest.param(name, run, id=f"{name}/{run}", marks=() if FAST_GOLDEN.get(name) == run else pytest.mark.slow)
        for name in NAMES
        for run in document(name)["runs"]
    ]


@pytest.mark.parametrize(("name", "run"), golden_cases())
def test_peaks_are_the_oracles(name: str, run: str) -> None:
    """
    The two were written apart over the same libraries: their tensors agree, and they differ by a few blocks that the allocator does not
    split, each up to 1 MiB larger than its tensor, which weigh more where the whole is small.

    Both are dispatch modes, under which gradients are never added in place.
    """
    figures, history, ledger = golden(name, run)
    tensors = tensor_highs(history)

    for phase, word in ((Phase.FORWARD, "forward"), (Phase.BACKWARD, "backward"), (Phase.OPTIMIZER_STEP, "optimizer")):
        expected = figures[f"{word}_peak_bytes"]
        worst = GOLDEN_WORST if expected >= 2 * GIB else GOLDEN_WORST_UNDER_2_GIB
        assert abs(tensors[phase] / figures[f"rounded_{word}_peak_bytes"] - 1) <= GOLDEN_WORST
        assert abs(ledger.highs[phase][0] / expected - 1) <= worst


def test_the_median_error_of_the_fast_runs() -> None:
    """Half of them within 0.1 %."""
    found = []
    for name, run in FAST_GOLDEN.items():
        figures, _, ledger = golden(name, run)
        found.append(abs(ledger.high[1] / figures["allocated_peak_bytes"] - 1))

    assert statistics.median(found) <= GOLDEN_MEDIAN


def test_what_a_trace_says_of_itself() -> None:
    """Layers run and layers of the model, a history that repeats as often, and the last optimizer step's rest."""
    trace = traced("llama", 5)
    history = trace.history
    ledger = books(history)

    assert (trace.num_layers, trace.whole_layers, history.repeat, history.layers) == (3, 5, 5, 1)
    assert steady_bytes(ledger) == ledger.curve[max(s.end for s in ledger.timeline if s.phase is Phase.OPTIMIZER_STEP) - 1]
    assert all(size > 0 for size in history.sizes)


def test_the_card_matters() -> None:
    """A T4 has no flash attention, whatever is asked for."""
    ampere, turing = (set(traced("llama", 5, device=device).history.names) for device in (A100, T4))

    assert "aten._scaled_dot_product_flash_attention" in ampere - turing
    assert "aten._scaled_dot_product_efficient_attention" in turing - ampere


def test_a_trace_leaves_the_process_as_it_was() -> None:
    """Two in a row are the same to the byte, and real training goes on between them."""
    spec, recipe = planned("llama", 5)
    first = trace_run(spec, recipe, installed()).history
    layer = torch.nn.Linear(4, 4)
    layer(torch.ones(2, 4)).sum().backward()
    second = trace_run(spec, recipe, installed()).history

    assert layer.weight.grad is not None
    assert (first.sizes, first.events, first.names) == (second.sizes, second.events, second.names)


def test_a_step_that_the_libraries_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their own error, with the place, under the model's name."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    def forward(*_: Any) -> None:
        raise ValueError("experts are not for sale")

    monkeypatch.setattr(LlamaMLP, "forward", forward)

    with pytest.raises(UnsupportedModelError) as error:
        trace_run(*planned("llama", 2), installed())
    assert "tiny stops in test_run.py:" in error.value.message
    assert "ValueError" in error.value.message
    assert "experts are not for sale" in error.value.message
    assert "--targets" in str(error.value.hint)


def test_a_step_that_acts_on_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names the operation, the module and the line of the model's code."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    def forward(self: Any, x: Any) -> Any:
        return self.up_proj(x) if (x > 0).any() else x

    monkeypatch.setattr(LlamaMLP, "forward", forward)

    with pytest.raises(UnsupportedModelError) as error:
        trace_run(*planned("llama", 2), installed())
    assert "the trace stopped at aten._local_scalar_dense" in error.value.message
    assert "layers.0.mlp" in error.value.message
    assert "test_run.py:" in error.value.message


def test_a_process_that_uses_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says so before anything is done."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    with pytest.raises(UnavailableError, match="already uses CUDA"):
        trace_run(*planned("llama", 2), installed())
