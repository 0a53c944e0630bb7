"""Two ledgers of round numbers side by side."""

from __future__ import annotations

import json

from planner.agreement import Agreement, Row
from planner.ledger import Allocation, Category, Ledger, Phase, Span
from planner.units import MIB

C = Category
SPANS = (Span(Phase.PREPARE, 0, 1), Span(Phase.FORWARD, 1, 2), Span(Phase.BACKWARD, 2, 3), Span(Phase.OPTIMIZER_STEP, 3, 4))
WEIGHTS = ("weight", C.PARAMETER, 8000, 0, 4)


def ledger(engine: str, *rows: tuple[str, Category, int, int, int], spans: tuple[Span, ...] = SPANS) -> Ledger:
    """A ledger of sizes in MiB, whose modules are named after what they hold."""
    return Ledger(engine, (Allocation(name, c, size * MIB, begin, end, scope=f"model.{name}") for name, c, size, begin, end in rows), spans)


def side_by_side(ours: tuple, theirs: tuple) -> Agreement:
    """The closed form beside the trace, over the same weights."""
    return Agreement(ledger("analytic", WEIGHTS, *ours), ledger("traced", WEIGHTS, *theirs))


def test_each_phase_is_led_by_its_sum_and_lists_what_either_engine_has():
    """Categories in their order; what one engine has not is zero there; loading and preparing are not compared."""
    agreement = side_by_side((("saved", C.ACTIVATION, 600, 1, 3), ("logits", C.LOGITS, 50, 1, 2)), (("saved", C.ACTIVATION, 700, 1, 3),))

    assert agreement.rows == (
        Row(Phase.FORWARD, None, 8650 * MIB, 8700 * MIB),
        Row(Phase.FORWARD, C.PARAMETER, 8000 * MIB, 8000 * MIB),
        Row(Phase.FORWARD, C.ACTIVATION, 600 * MIB, 700 * MIB),
        Row(Phase.FORWARD, C.LOGITS, 50 * MIB, 0),
        Row(Phase.BACKWARD, None, 8600 * MIB, 8700 * MIB),
        Row(Phase.BACKWARD, C.PARAMETER, 8000 * MIB, 8000 * MIB),
        Row(Phase.BACKWARD, C.ACTIVATION, 600 * MIB, 700 * MIB),
        Row(Phase.OPTIMIZER_STEP, None, 8000 * MIB, 8000 * MIB),
        Row(Phase.OPTIMIZER_STEP, C.PARAMETER, 8000 * MIB, 8000 * MIB),
    )


def test_the_parts_of_a_phase_add_up_to_its_sum():
    """In both columns, and in their difference."""
    agreement = side_by_side((("saved", C.ACTIVATION, 600, 1, 3), ("logits", C.LOGITS, 50, 1, 2)), (("saved", C.ACTIVATION, 700, 1, 3),))
    for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP):
        whole, *parts = (row for row in agreement.rows if row.phase is phase)

        assert whole.category is None
        assert whole.analytic_bytes == sum(part.analytic_bytes for part in parts)
        assert whole.traced_bytes == sum(part.traced_bytes for part in parts)
        assert whole.difference_bytes == sum(part.difference_bytes for part in parts)


def test_a_phase_that_only_one_engine_has_is_left_out():
    """The closed form has no evaluation."""
    evaluated = (*SPANS, Span(Phase.EVALUATION, 4, 5))
    agreement = Agreement(ledger("analytic", WEIGHTS), ledger("traced", ("weight", C.PARAMETER, 8000, 0, 5), spans=evaluated))

    assert {row.phase for row in agreement.rows} == {Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER_STEP}
    assert agreement.explanations == ()


def test_what_differs_by_a_thousandth_is_explained():
    """By the category that differs the most, and what the trace has in it that is largest; below that nothing is said."""
    more = side_by_side((("saved", C.ACTIVATION, 20, 1, 2),), (("saved", C.ACTIVATION, 10, 1, 2), ("mask", C.ACTIVATION, 1, 1, 2)))
    less = side_by_side((), (("scratch", C.TEMPORARY, 9, 2, 3),))
    none = side_by_side((), (("scratch", C.TEMPORARY, 7, 2, 3),))

    assert more.explanations == (
        "forward: the closed form has 9.0 MiB more activation than the trace, whose largest is saved of model.saved (10.0 MiB)",
    )
    assert less.explanations == (
        "backward: the closed form has 9.0 MiB less temporary than the trace, whose largest is scratch of model.scratch (9.0 MiB)",
    )
    assert none.explanations == ()


def test_what_the_trace_has_not_is_said():
    """The closed form may have a category alone."""
    agreement = side_by_side((("state", C.OPTIMIZER_STATE, 90, 3, 4),), ())

    assert agreement.explanations == (
        "optimizer step: the closed form has 90.0 MiB more optimizer state than the trace, which has none",
    )


def test_the_same_bytes_under_another_name_are_told_apart_from_a_difference():
    """The sums agree, the categories do not: one sentence, and none about a difference."""
    agreement = side_by_side((("logits", C.LOGITS, 100, 1, 2),), (("logits", C.ACTIVATION, 100, 1, 2),))

    assert [sentence.split(":")[0] for sentence in agreement.explanations] == [
        "the closed form declares what a tensor is for, the trace tells it by a rule"
    ]


def test_a_difference_is_not_blamed_on_bytes_that_have_two_names():
    """What cancels out between two categories explains nothing."""
    agreement = side_by_side(
        (("logits", C.LOGITS, 100, 1, 2),), (("logits", C.ACTIVATION, 100, 1, 2), ("scratch", C.TEMPORARY, 30, 1, 2))
    )

    assert agreement.explanations[0] == (
        "forward: the closed form has 30.0 MiB less temporary than the trace, whose largest is scratch of model.scratch (30.0 MiB)"
    )


def test_an_empty_phase_needs_no_explanation():
    """Nothing on either side is no difference."""
    agreement = Agreement(ledger("analytic"), ledger("traced"))

    assert [row.traced_bytes for row in agreement.rows] == [0, 0, 0]
    assert agreement.explanations == ()


def test_the_dump_is_json():
    """Sizes in bytes; the category of a sum is null."""
    agreement = side_by_side((), (("scratch", C.TEMPORARY, 9, 2, 3),))
    dumped = agreement.model_dump()

    assert json.loads(json.dumps(dumped)) == dumped
    assert dumped[2] == {
        "phase": "backward", "category": None, "analytic_bytes": 8000 * MIB, "traced_bytes": 8009 * MIB, "difference_bytes": -9 * MIB,
    }  # fmt: skip
    assert [row["category"] for row in dumped[3:5]] == ["parameter", "temporary"]
