"""
Sizes that remember how they were computed, so that a step that was laid out once answers for other batches without being run again.

A `Size` behaves like the integer it stands for and writes down each operation. Where the program asks a question of it (is this batch
above one?), the answer is written down too: what was recorded holds wherever all those questions have the same answers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

_OPERATORS: dict[str, Callable[[int, int], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


class Recording:
    """
    What was computed from a few named sizes, and what was asked of them.

    Attributes:
        names: The inputs.
        known: By operator and operands (a name, or an integer in brackets), what each operation gave, in order.
        answers: By comparison and operands, what each question was answered.

    >>> recording = Recording()
    >>> tokens = recording.size("batch", 2) * recording.size("length", 8)
    >>> tokens > 4, tokens.value
    (True, 16)
    >>> program = recording.program([tokens * 2])
    >>> program(3, 8), program(1, 2)
    ([48], None)
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.lines: list[str] = []
        self.known: dict[tuple[str, str, str], Size] = {}
        self.answers: dict[tuple[str, str, str], bool] = {}

    def size(self, name: str, value: int) -> Size:
        """An input, with the value that answers questions while recording."""
        self.names.append(name)
        return Size(self, name, value)

    def program(self, results: Sequence[int | Size]) -> Callable[..., list[int] | None]:
        """
        A function from the inputs, in the order in which they were named, to the results; it gives None where a question that was asked
        while recording has another answer.
        """
        asked = [f"{a} {sign} {b}" if answer else f"not ({a} {sign} {b})" for (sign, a, b), answer in self.answers.items()]
        source = [f"def program({', '.join(self.names)}):", *(f"    {line}" for line in self.lines)]
        if asked:
            source += [f"    if not ({' and '.join(asked)}):", "        return None"]
        source.append(f"    return [{', '.join(_text(r) for r in results)}]")
        space: dict[str, Any] = {}
        exec(compile("\n".join(source), "<recorded sizes>", "exec"), space)  # noqa: S102 - names and integers of our own making
        program: Callable[..., list[int] | None] = space["program"]
        return program

    def compute(self, sign: str, a: int | Size, b: int | Size) -> Size:
        """Write down `a sign b`."""
        key = (sign, _text(a), _text(b))
        if key not in self.known:
            name = f"v{len(self.lines)}"
            self.lines.append(f"{name} = {key[1]} {sign} {key[2]}")
            self.known[key] = Size(self, name, _OPERATORS[sign](_value(a), _value(b)))
        return self.known[key]

    def ask(self, sign: str, a: Size, b: int | Size) -> bool:
        """Answer `a sign b`, and write the answer down."""
        answer = bool(_OPERATORS[sign](a.value, _value(b)))
        self.answers[sign, a.name, _text(b)] = answer
        return answer


class Size:
    """An integer of a recording."""

    __slots__ = ("name", "recording", "value")

    def __init__(self, recording: Recording, name: str, value: int) -> None:
        self.recording, self.name, self.value = recording, name, value

    def __repr__(self) -> str:
        return f"{self.name}={self.value}"

    def __add__(self, other: int | Size) -> Size:
        return self.recording.compute("+", self, other)

    def __radd__(self, other: int) -> Size:
        return self.recording.compute("+", other, self)

    def __sub__(self, other: int | Size) -> Size:
        return self.recording.compute("-", self, other)

    def __rsub__(self, other: int) -> Size:
        return self.recording.compute("-", other, self)

    def __mul__(self, other: int | Size) -> Size:
        return self.recording.compute("*", self, other)

    def __rmul__(self, other: int) -> Size:
        return self.recording.compute("*", other, self)

    def __floordiv__(self, other: int | Size) -> Size:
        return self.recording.compute("//", self, other)

    def __rfloordiv__(self, other: int) -> Size:
        return self.recording.compute("//", other, self)

    def __mod__(self, other: int | Size) -> Size:
        return self.recording.compute("%", self, other)

    def __neg__(self) -> Size:
        return self.recording.compute("-", 0, self)

    def __abs__(self) -> Size:
        return self if self >= 0 else -self

    def __lt__(self, other: int | Size) -> bool:
        return self.recording.ask("<", self, other)

    def __le__(self, other: int | Size) -> bool:
        return self.recording.ask("<=", self, other)

    def __gt__(self, other: int | Size) -> bool:
        return self.recording.ask(">", self, other)

    def __ge__(self, other: int | Size) -> bool:
        return self.recording.ask(">=", self, other)

    def __eq__(self, other: object) -> bool:
        return self.recording.ask("==", self, other) if isinstance(other, (int, Size)) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return self.recording.ask("!=", self, other) if isinstance(other, (int, Size)) else NotImplemented

    def __bool__(self) -> bool:
        return self.recording.ask("!=", self, 0)

    __hash__ = None  # type: ignore[assignment]  # an unknown size is no key


def _text(size: int | Size) -> str:
    return size.name if isinstance(size, Size) else f"({int(size)})"


def _value(size: int | Size) -> int:
    return size.value if isinstance(size, Size) else int(size)
