"""The largest value that runs: the search against brute force, and the real thing under a ceiling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InvalidRecipeError
from planner.limits import find_limit, largest


@given(st.integers(0, 300), st.integers(1, 64), st.sampled_from([1, 4, 64]))
def test_the_search_finds_what_brute_force_finds(limit: int, start: int, step: int) -> None:
    """From whatever start, no value is asked for twice, and none below one step."""
    asked: list[int] = []

    def runs(value: int) -> bool:
        asked.append(value)
        return value <= limit

    assert largest(runs, start * step, step) == max((v for v in range(0, limit + 1, step)), default=0)
    assert len(asked) == len(set(asked))
    assert all(value >= step and value % step == 0 for value in asked)


@pytest.mark.parametrize("limit", [1, 7, 4096])
def test_a_right_guess_takes_two_tries(limit: int) -> None:
    """The limit itself, and the next value."""
    asked: list[int] = []
    largest(lambda value: asked.append(value) or value <= limit, limit, 1)  # type: ignore[func-returns-value]

    assert asked == [limit, limit + 1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"vary": "rank"}, "vary is `rank`"), ({}, "ceiling is missing"), ({"ceiling": 1 << 20, "timeout": -1}, "timeout is -1")],
)
def test_wrong_requests(arguments: dict[str, object], words: str) -> None:
    """Refused before anything runs."""
    config = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
              "num_attention_heads": 2}  # fmt: skip
    with pytest.raises(InvalidRecipeError, match=words):
        find_limit(config, device="cpu", **arguments)  # type: ignore[arg-type]


def test_the_predicted_limit_is_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a ceiling the largest batch that is predicted really runs, and the next one runs out of memory."""
    pytest.importorskip("torch")
    pytest.importorskip("trl")
    from tests.engines.measured.runs import MODELS, in_process

    monkeypatch.setattr("planner.limits.run_child", in_process)
    found = find_limit(MODELS["llama"], device="cpu", seq_len=32, method="lora", ceiling=8 << 20, entry_point="trainer", loss="full")
    failure = found.tries[-1].failure
    assert failure is not None

    assert found.predicted == found.measured > 0
    assert [t.value for t in found.tries] == [found.measured, found.measured + 1]
    assert failure.allocated_bytes <= 8 << 20 < failure.allocated_bytes + failure.requested_bytes
    assert found.model_dump()["agrees"]
