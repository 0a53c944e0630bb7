"""
What was recorded of sizes (`planner.symbolic`), as polynomials of the inputs and of rounded quotients.

Two expressions that round to the same blocks become one polynomial, and whether one sum of sizes can exceed another becomes a question
about coefficients. Everything is exact: integers of any size, no division but by what divides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import comb, gcd

from planner.symbolic import Recording, Size
from planner.value import NamedTuple

Monomial = tuple[str, ...]
"""Names of variables in alphabetical order, each as often as its power; none for a constant."""

Polynomial = Mapping[Monomial, int]
"""Coefficients by monomial; none of them zero."""


class Quotient(NamedTuple):
    """
    A variable that is a division's result, rounded.

    Attributes:
        name: The variable.
        numerator: What is divided; where the divisor is a number, its coefficients lie from 0 up to, not including, the divisor.
        divisor: By what.
        up: Whether it is rounded up; else down.
    """

    name: str
    numerator: Polynomial
    divisor: Polynomial
    up: bool

    @property
    def lowest(self) -> int | None:
        """The least that it can be where all inputs are 1 or more; None where that is not known."""
        if set(self.divisor) != {()} or any(c < 0 for c in self.numerator.values()):
            return None
        return int(self.up)


class Question(NamedTuple):
    """A comparison of a polynomial with zero that had an answer while recording."""

    sign: str
    polynomial: Polynomial
    answer: bool


class Forms:
    """
    The polynomials of a recording.

    Args:
        recording: What was recorded; its inputs are whole numbers from 1 up.

    >>> recording = Recording()
    >>> tokens = recording.size("batch", 2) * recording.size("length", 8)
    >>> blocks = -(-tokens * 1030 // 512) * 512
    >>> forms = Forms(recording)
    >>> forms.of(blocks), forms.quotients[0].numerator, forms.quotients[0].divisor
    ({('batch', 'length'): 1024, ('q0',): 512}, {('batch', 'length'): 3}, {(): 256})
    """

    def __init__(self, recording: Recording) -> None:
        self.quotients: list[Quotient] = []
        self._names: dict[tuple[object, ...], str] = {}
        self._forms: dict[str, Polynomial] = {name: {(name,): 1} for name in recording.names}
        for (sign, a, b), size in recording.known.items():
            self._forms[size.name] = self._compute(sign, self._read(a), self._read(b))
        self.lowest: dict[str, int | None] = dict.fromkeys(recording.names, 1)
        self.lowest |= {quotient.name: quotient.lowest for quotient in self.quotients}
        self.questions = list(self._questions(recording))

    def of(self, size: int | Size) -> Polynomial:
        """The polynomial of a size."""
        return self._forms[size.name] if isinstance(size, Size) else constant(int(size))

    def never_less(self, a: Polynomial, b: Polynomial) -> bool:
        """Whether a is at least b whatever the inputs; False also where that is not easily seen."""
        return all(c >= 0 for c in self.shifted(add(a, b, -1)).values())

    def shifted(self, p: Polynomial) -> dict[Monomial, int]:
        """
        The polynomial of how much each variable exceeds its least value; of a variable without one, every term counts as negative.
        """
        found: dict[Monomial, int] = {}
        for monomial, coefficient in p.items():
            for rest, factor in _expand(monomial, self.lowest):
                found[rest] = found.get(rest, 0) + coefficient * factor if factor else -1
        return found

    def _read(self, text: str) -> Polynomial:
        return constant(int(text[1:-1])) if text.startswith("(") else self._forms[text]

    def _questions(self, recording: Recording) -> Iterator[Question]:
        """Those that the inputs can answer in more than one way, each once."""
        seen = set()
        for (sign, a, b), answer in recording.answers.items():
            difference = add(self._read(a), self._read(b), -1)
            key = (sign, frozenset(difference.items()))
            if key in seen or self._is_settled(sign, difference):
                continue
            seen.add(key)
            yield Question(sign, difference, answer)

    def _is_settled(self, sign: str, p: Polynomial) -> bool:
        """Whether `p sign 0` is seen to have one answer for all inputs."""
        up, down = self.shifted(p), self.shifted({m: -c for m, c in p.items()})
        never_negative, never_positive = all(c >= 0 for c in up.values()), all(c >= 0 for c in down.values())
        if (never_negative and up.get((), 0) > 0) or (never_positive and down.get((), 0) > 0) or not p:
            return True
        return (never_negative and sign in ("<", ">=")) or (never_positive and sign in (">", "<="))

    def _compute(self, sign: str, a: Polynomial, b: Polynomial) -> Polynomial:
        if sign in "+-":
            return add(a, b, 1 if sign == "+" else -1)
        if sign == "*":
            return multiply(a, b)
        quotient = self._divide(a, b)
        return quotient if sign == "//" else add(a, multiply(quotient, b), -1)

    def _divide(self, a: Polynomial, b: Polynomial) -> Polynomial:
        """a // b: what divides goes out, the rest is a variable. What is negative is -(-a / b rounded up)."""
        negative = sum(a.values()) < 0
        if negative:
            a = {m: -c for m, c in a.items()}
        out: dict[Monomial, int] = {}
        rest: dict[Monomial, int] = {}
        if set(b) == {()}:
            by = b[()]
            for monomial, coefficient in a.items():
                whole, part = divmod(coefficient, by)
                out |= {monomial: whole} if whole else {}
                rest |= {monomial: part} if part else {}
        else:
            for monomial, coefficient in a.items():
                single = _quotient(monomial, coefficient, b)
                out |= {single[0]: single[1]} if single else {}
                rest |= {} if single else {monomial: coefficient}
        result: Polynomial = add(out, {(self._name(rest, b, up=negative),): 1}) if rest else out
        return {m: -c for m, c in result.items()} if negative else result

    def _name(self, numerator: Polynomial, divisor: Polynomial, *, up: bool) -> str:
        shared = gcd(*numerator.values(), *divisor.values())
        numerator = {m: c // shared for m, c in numerator.items()}
        divisor = {m: c // shared for m, c in divisor.items()}
        key = (frozenset(numerator.items()), frozenset(divisor.items()), up)
        if key not in self._names:
            self._names[key] = f"q{len(self.quotients)}"
            self.quotients.append(Quotient(self._names[key], numerator, divisor, up))
        return self._names[key]


def constant(value: int) -> Polynomial:
    """A number."""
    return {(): value} if value else {}


def add(a: Polynomial, b: Polynomial, times: int = 1) -> dict[Monomial, int]:
    """a + times * b."""
    found = dict(a)
    for monomial, coefficient in b.items():
        total = found.get(monomial, 0) + times * coefficient
        if total:
            found[monomial] = total
        else:
            found.pop(monomial, None)
    return found


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    """a * b."""
    found: dict[Monomial, int] = {}
    for m, c in a.items():
        for n, d in b.items():
            key = tuple(sorted(m + n))
            found[key] = found.get(key, 0) + c * d
    return {m: c for m, c in found.items() if c}


def substitute(p: Polynomial, name: str, value: int) -> Polynomial:
    """The polynomial with a number in the place of a variable."""
    found: dict[Monomial, int] = {}
    for monomial, coefficient in p.items():
        power = monomial.count(name)
        key = tuple(v for v in monomial if v != name) if power else monomial
        found[key] = found.get(key, 0) + coefficient * value**power
    return {m: c for m, c in found.items() if c}


def evaluate(p: Polynomial, values: Mapping[str, int]) -> int:
    """Its value."""
    total = 0
    for monomial, coefficient in p.items():
        term = coefficient
        for name in monomial:
            term *= values[name]
        total += term
    return total


def answers(sign: str, value: int) -> bool:
    """Whether `value sign 0`."""
    return {"<": value < 0, "<=": value <= 0, ">": value > 0, ">=": value >= 0, "==": value == 0, "!=": value != 0}[sign]


def _quotient(monomial: Monomial, coefficient: int, divisor: Polynomial) -> tuple[Monomial, int] | None:
    """One term divided by a polynomial of one term; None where that does not come out even."""
    if len(divisor) != 1:
        return None
    (factors, by), *_ = divisor.items()
    left = list(monomial)
    for name in factors:
        if name not in left:
            return None
        left.remove(name)
    return (tuple(left), coefficient // by) if coefficient % by == 0 else None


def _expand(monomial: Monomial, lowest: Mapping[str, int | None]) -> Iterator[tuple[Monomial, int]]:
    """The terms of a product of (least value + excess); a factor of 0 where a least value is not known."""
    terms: list[tuple[Monomial, int]] = [((), 1)]
    for name in dict.fromkeys(monomial):
        low, power = lowest[name], monomial.count(name)
        if low is None:
            yield monomial, 0
            return
        terms = [
            ((*rest, *(name,) * k), factor * comb(power, k) * low ** (power - k))
            for rest, factor in terms
            for k in range(power + 1)
            if low or k == power
        ]
    yield from terms
