"""
How far each engine was off on published measurements: the stated errors, in one place, with their evidence.

The tests compute every figure again from the rows that it names. None of them enters a prediction.
"""

from __future__ import annotations

from planner.units import MIB, ceil_div
from planner.value import NamedTuple


class Accuracy(NamedTuple):
    """
    The stated error of an engine.

    Attributes:
        allocated: Hundredths of a percent by which an allocated peak may be off.
        reserved: Hundredths of a percent by which a reserved peak may be off: the worst of the published runs.
        process_bytes: What a process held on a card beyond that, at most: libraries and contexts, which those runs do not take apart.
        evidence: Which runs say so.
    """

    allocated: int
    reserved: int
    process_bytes: int
    evidence: str

    def error_bytes(self, reserved_bytes: int, context_error_bytes: int) -> int:
        """
        The stated error of a process.

        Args:
            reserved_bytes: Its reserved peak.
            context_error_bytes: How much more its context may be.
        """
        return ceil_div(reserved_bytes * self.reserved, 10_000) + context_error_bytes


_EVIDENCE = (
    "allocated: the matrix of the tests, worst below 1 %; reserved: 40 runs on a T4 (t4-0915-*: torch 2.14, transformers 5.17, peft "
    "0.20, bitsandbytes 0.50), worst t4-0915-22; 16-bit bases alone: 0.28 %; process: 8 runs on an A100 (a100-fms-*: transformers "
    "4.48), worst a100-fms-076"
)

_TRACED_EVIDENCE = (
    "allocated and reserved: the same 40 runs on a T4, traced with torch 2.13, transformers 5.23, peft 0.21 and bitsandbytes 0.50; worst "
    "t4-0915-24 and t4-0915-22; process: as for the closed form, whose stack can be the A100's"
)

ENGINES = {
    "analytic": Accuracy(allocated=100, reserved=570, process_bytes=832 * MIB, evidence=_EVIDENCE),
    "traced": Accuracy(allocated=20, reserved=553, process_bytes=832 * MIB, evidence=_TRACED_EVIDENCE),
}
"""By the name of the engine."""

EXTRAPOLATED_PERCENT = 0.0001
"""
How far a trace of three instances of what repeats was off a trace of every layer, at most, in the peaks of all phases and in what is
reserved: Llama 3.2 1B (four recipes), Gemma 3 1B, Qwen3 0.6B and 30B-A3B, OLMo 1B, Pythia 410M, LFM2 350M, Falcon 7B, GPT-2.
"""


def accuracy_of(engine: str) -> Accuracy:
    """The stated error of an engine."""
    return ENGINES[engine]
