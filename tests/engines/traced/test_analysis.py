"""A trace as an engine's answer."""

from __future__ import annotations

import pytest

from planner.architecture import build_spec
from planner.bookkeeping import steady_bytes
from planner.engines import analytic
from planner.history import History
from planner.ledger import Phase
from planner.recipe import make_recipe
from planner.stack import resolve
from planner.unrolling import unroll_history
from tests.engines import tiny
from tests.engines.traced.runs import A100, books, installed, planned, traced

pytest.importorskip("torch")

from planner.engines.traced import analysis
from planner.engines.traced.analysis import analyse


def test_the_answer_is_the_traces() -> None:
    """Peaks, rest and counts are those of its unrolled history; the extrapolation is told."""
    found = analyse(*planned("llama", 5), installed(), A100)
    trace = traced("llama", 5)
    ledger = books(trace.history)

    assert ledger.highs == found.ledger.highs
    assert steady_bytes(ledger) == found.steady_bytes
    assert (trace.num_trainable_parameters, trace.num_quantized_parameters, trace.paged_bytes) == (
        found.num_trainable_parameters, found.num_quantized_parameters, found.paged_bytes,
    )  # fmt: skip
    assert "traced 3 of 5 layers" in found.warnings[0]


def test_all_layers_leave_nothing_to_tell() -> None:
    """No extrapolation, no warning, the same peaks."""
    short, whole = (analyse(*planned("llama", 5, {"max_grad_norm": 0.0}), installed(), A100, every_layer=every) for every in (False, True))

    assert whole.warnings == ()
    assert {phase: size for phase, (size, _) in whole.ledger.highs.items()} == {
        phase: size for phase, (size, _) in short.ledger.highs.items()
    }


def test_what_does_not_repeat_is_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A history that cannot be unrolled costs a second trace, not a wrong number."""

    def refuse(_: object) -> None:
        raise analysis.NotRepeatable("the second and the last instance free different storages of the one before")

    monkeypatch.setattr(analysis, "unroll_history", refuse)
    found = analyse(*planned("llama", 5), installed(), A100)

    assert found.warnings == ()
    assert found.ledger.highs[Phase.FORWARD] == books(traced("llama", 5, every_layer=True).history).highs[Phase.FORWARD]


def test_progress_is_told() -> None:
    """In words, from the model to its steps, with how many layers are run."""
    said: list[str] = []
    analyse(*planned("llama", 5), installed(), A100, progress=said.append)

    assert len(said) >= 4
    assert "tiny" in said[0]
    assert any("3 of 5 layers" in text for text in said)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"entry_point": "trainer"},
        {"entry_point": "loop"},
        {"entry_point": "loop", "double_quant": False, "compute_dtype": "fp16", "mixed_precision": "no"},
        {"entry_point": "loop", "kbit_prepare": False, "modules_to_save": ("lm_head",)},
        {"quantization": "int8"},
        {"method": "lora"},
        {"method": "lora", "entry_point": "loop"},
        {"method": "full"},
    ],
    ids=lambda knobs: "-".join(map(str, knobs.values())) or "default",
)
def test_a_model_arrives_in_closed_form_as_the_libraries_bring_it(knobs):
    """Loading and preparation, event by event: the same births and deaths of the same bytes, in the same order."""
    spec = build_spec({**tiny.LLAMA, "num_hidden_layers": 5}, id="tiny")
    recipe = resolve(make_recipe(seq_len=32, **knobs), installed(), spec.dtype)
    closed, ran = (arrivals(engine(spec, recipe, installed(), A100).history) for engine in (analytic.analyse, analyse))

    assert closed == ran


@pytest.mark.parametrize("knobs", [{}, {"method": "lora"}, {"method": "full"}, {"entry_point": "loop"}], ids=str)
def test_workspaces_are_taken_in_the_same_products(knobs):
    """In forward the first linear's, in backward the head's or the loss's: in both engines the storage that was born before is the same."""
    spec = build_spec({**tiny.LLAMA, "num_hidden_layers": 5}, id="tiny")
    recipe = resolve(make_recipe(seq_len=32, **knobs), installed(), spec.dtype)
    closed, ran = (before_workspaces(engine(spec, recipe, installed(), A100).history) for engine in (analytic.analyse, analyse))

    assert len(closed) == 2
    assert closed == ran


def before_workspaces(found: History) -> list[tuple[str, int]]:
    """The workspaces, and the bytes of what was born last before each."""
    whole = unroll_history(found)
    births = [event for event in whole.events if event >= 0 and whole.sizes[event]]
    taken = [i for i, event in enumerate(births) if "cuBLAS workspace" in whole.names[event]]
    return [(whole.names[births[i]], whole.sizes[births[i - 1]]) for i in taken]


def arrivals(found: History) -> list[tuple[bool, int]]:
    """Whether a storage is born, and its bytes, for every event before the first step."""
    whole = unroll_history(found)
    early = [s for s in whole.stretches if s.phase in (Phase.LOAD, Phase.PREPARE)]
    events = [event for stretch in early for event in whole.events[stretch.begin : stretch.end]]
    return [(event >= 0, whole.sizes[event if event >= 0 else ~event]) for event in events]
