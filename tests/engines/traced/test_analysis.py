"""A trace as an engine's answer."""

from __future__ import annotations

import pytest

from planner.bookkeeping import steady_bytes
from planner.ledger import Phase
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
