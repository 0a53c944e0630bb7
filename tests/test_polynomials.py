"""Recorded sizes as polynomials: the same integers as the program that was recorded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planner.polynomials import Forms, add, answers, evaluate, multiply, substitute
from planner.symbolic import Recording

SIZES = st.integers(1, 300)


def program(b, s, r):
    """Sizes as steps have them: products, roundings, halves, a question."""
    tokens = b * s
    blocks = -(-(tokens * 1030) // 512) * 512
    padded = tokens + (-tokens) % 64
    pairs = (s - 1) * b // 2 + r * 4096 // r
    return [blocks, padded * r, pairs, -(-blocks // 20) + 7 * (s % 3), tokens * 8 if s > 4 * r else tokens]


def values(forms: Forms, inputs: dict[str, int]) -> dict[str, int]:
    """Every variable, by plain arithmetic."""
    found = dict(inputs)
    for q in forms.quotients:
        numerator, divisor = evaluate(q.numerator, found), evaluate(q.divisor, found)
        found[q.name] = -(-numerator // divisor) if q.up else numerator // divisor
    return found


@given(SIZES, SIZES, SIZES, SIZES, SIZES, SIZES)
def test_polynomials_are_the_program(b, s, r, b2, s2, r2):
    """Where every question has the recorded answer, each polynomial is the integer that the program itself computes."""
    recording = Recording()
    sizes = program(recording.size("b", b), recording.size("s", s), recording.size("r", r))
    forms = Forms(recording)
    found = values(forms, {"b": b2, "s": s2, "r": r2})
    asked = [answers(q.sign, evaluate(q.polynomial, found)) is q.answer for q in forms.questions]

    assert all(asked) == ((s2 > 4 * r2) == (s > 4 * r))
    if all(asked):
        assert [evaluate(forms.of(size), found) for size in sizes] == program(b2, s2, r2)


@given(SIZES, SIZES, SIZES)
def test_never_less_is_never_wrong(b, s, r):
    """What is said never to be less is not less, at any inputs and of any two sizes."""
    recording = Recording()
    sizes = program(recording.size("b", 3), recording.size("s", 40), recording.size("r", 4))
    forms = Forms(recording)
    found = values(forms, {"b": b, "s": s, "r": r})
    polynomials = [forms.of(size) for size in sizes]
    for p in polynomials:
        for q in polynomials:
            if forms.never_less(p, q):
                assert evaluate(p, found) >= evaluate(q, found)


def test_questions_with_one_answer_are_not_asked():
    """Whether a product of sizes is above zero hangs on nothing; whether it is above eight does."""
    recording = Recording()
    tokens = recording.size("b", 2) * recording.size("s", 8)

    assert (tokens > 0, tokens != 0, tokens >= 1, tokens > 8) == (True, True, True, True)
    assert [(q.sign, dict(q.polynomial)) for q in Forms(recording).questions] == [(">", {("b", "s"): 1, (): -8})]


@given(SIZES, SIZES, SIZES)
def test_arithmetic_is_that_of_integers(b, s, r):
    """Sums, products and substitutions agree with their values."""
    p, q = {("b", "s"): 3, (): -2}, {("b",): 5, ("r", "r"): 1}
    at = {"b": b, "s": s, "r": r}

    assert evaluate(add(p, q, -2), at) == evaluate(p, at) - 2 * evaluate(q, at)
    assert evaluate(multiply(p, q), at) == evaluate(p, at) * evaluate(q, at)
    assert evaluate(substitute(multiply(p, q), "b", b), {"s": s, "r": r}) == evaluate(multiply(p, q), at)
