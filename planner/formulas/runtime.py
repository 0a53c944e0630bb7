"""
What a process holds on a card beyond what torch allocates: provisional figures, each with its source and its range.

None is a formula. Contexts enter every verdict; the reserve only the outlook over cards that are not simulated.
"""

from __future__ import annotations

from planner.formulas.blocks import SEGMENT_ROUNDING_BYTES
from planner.units import MIB, ceil_div, round_up
from planner.value import NamedTuple


class Estimate(NamedTuple):
    """
    A figure that is not computed.

    Attributes:
        nbytes: What to plan with.
        low: The lower end of the range that the source gives.
        high: The upper end.
        source: Where the figures come from.
    """

    nbytes: int
    low: int
    high: int
    source: str

    @property
    def error_bytes(self) -> int:
        """How much more it may be."""
        return self.high - self.nbytes


T4_CONTEXT = 147_718_144
RTX_6000_ADA_CONTEXT = 426 * MIB

_TURING_CONTEXT = Estimate(
    T4_CONTEXT,
    T4_CONTEXT,
    RTX_6000_ADA_CONTEXT,
    "fitcheck-llm 0.3.1, t4-sweep-2026-09-15: a Tesla T4 under torch 2.14+cu130, the same in 40 runs",
)
_AMPERE_CONTEXT = Estimate(
    RTX_6000_ADA_CONTEXT,
    300 * 10**6,
    600 * 10**6,
    "unsloth-zoo pull request 1053: an RTX 6000 Ada under torch 2.10+cu130; range: pytorch issues 107667 and 109888 (lazy "
    "loading), and 50 to 150 MB more as kernels are first used",
)
_HOPPER_CONTEXT = Estimate(
    600 * MIB,
    RTX_6000_ADA_CONTEXT,
    700 * MIB,
    "no measurement that can be cited: 500 to 700 MiB is commonly named for H100, H200 and B200",
)


def cuda_context(capability: tuple[int, int] | None) -> Estimate:
    """
    Bytes of one process's CUDA context and loaded kernels on a card, outside torch's allocator, with lazily loaded modules.

    Args:
        capability: The card's compute capability; None takes the middle figure.
    """
    if capability is None or capability[0] == 8:
        return _AMPERE_CONTEXT
    return _HOPPER_CONTEXT if capability[0] > 8 else _TURING_CONTEXT


# In thousandths of the allocated peak: what simulations of the caching allocator over whole traced steps of a 70B model gave.
RESERVE_LOW, RESERVE_MIDDLE, RESERVE_HIGH = 32, 46, 60


def allocator_reserve(allocated_bytes: int) -> Estimate:
    """
    Bytes that torch's allocator reserves beyond an allocated peak: cached blocks and what does not fit into them.

    The range is of a simulated endless card. Forty published runs of small models on a T4 reserve 4 to 49 % more than they
    allocate (median 12 %, the most with eager attention); a full card gives cached segments back before it fails.

    Args:
        allocated_bytes: The allocated peak.

    Source:
        Simulated reserved over allocated of five QLoRA recipes of Llama-2-70B, 3.2 to 6.0 %; segments come in multiples of 2 MiB.
    """
    low, middle, high = (
        round_up(allocated_bytes + ceil_div(allocated_bytes * share, 1000), SEGMENT_ROUNDING_BYTES) - allocated_bytes
        for share in (RESERVE_LOW, RESERVE_MIDDLE, RESERVE_HIGH)
    )
    return Estimate(middle, low, high, "simulated allocator over traced Llama-2-70B steps: 3.2 to 6.0 % (provisional)")
