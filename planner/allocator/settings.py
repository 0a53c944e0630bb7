"""The knobs of PyTorch's allocator: what PYTORCH_ALLOC_CONF and PYTORCH_CUDA_ALLOC_CONF may say."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from planner.errors import InvalidRecipeError
from planner.units import MIB, round_up
from planner.value import Value

BLOCK = 512
"""Every size is a multiple of this (kMinBlockSize)."""

SMALL_SIZE = MIB
"""The largest allocation that goes to the small pool (kSmallSize)."""

SMALL_SEGMENT = 2 * MIB
"""Segments of the small pool (kSmallBuffer)."""

MIN_LARGE_ALLOCATION = 10 * MIB
"""From this size on, an allocation gets a segment of its own (kMinLargeAlloc)."""

LARGE_ROUNDING = 2 * MIB
"""What such a segment is rounded up to (kRoundLarge)."""

LARGE_SEGMENT = 20 * MIB
"""Segments of the large pool for smaller allocations, unless set otherwise (large_segment_size_)."""

INTERVALS = 16
"""Powers of two from 1 MiB to 64 GiB, each with divisions of its own (kRoundUpPowerOfTwoIntervals)."""

VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Where PyTorch looks for settings; the first one that is set is the only one read."""

IGNORED_KEYS = frozenset(
    {
        "release_lock_on_cudamalloc",
        "release_lock_on_hipmalloc",
        "graph_capture_record_stream_reuse",
        "throw_on_cudamalloc_oom",
        "pinned_use_cuda_host_register",
        "pinned_use_hip_host_register",
        "pinned_use_background_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_num_register_threads",
        "pinned_max_round_threshold_mb",
        "pinned_max_cached_size_mb",
        "pinned_free_catch_all",
    }
)
"""Keys that PyTorch knows and that change nothing here: locks, CUDA graphs, pinned host memory."""

_PAIR = re.compile(r"([^,:\[\]]+):(\[[^\[\]]*\]|[^,:\[\]]+)(?:,|$)")


class AllocatorSettings(Value):
    """
    What the allocator is told.

    Attributes:
        max_split_size: Blocks of at least so many bytes are not split, nor given to smaller requests; None splits all.
        max_non_split_rounding: How many bytes larger than the request such a block must stay below; None is `large_segment_size`.
        roundup_power2_divisions: Into how many parts each power of two from 1 MiB on is divided; sizes are rounded up to the next
            part. 0 and 1 round to 512 bytes. The first entry serves smaller sizes too, the last one larger ones.
        garbage_collection_threshold: Share of the allowed memory above which old cached segments are released before a new one is
            asked for; 0 never. Acts only under a memory fraction below 1.
        expandable_segments: Whether a pool is one address range that grows and shrinks page by page.
        large_segment_size: Bytes of segments for allocations of 1 to 10 MiB, and of the large pool's expandable pages.
        per_process_memory_fraction: Share of the card that the process may reserve.

    Source:
        torch@2.13.0, c10/core/AllocatorConfig.h, c10/cuda/CUDAAllocatorConfig.h.
    """

    max_split_size: int | None = None
    max_non_split_rounding: int | None = None
    roundup_power2_divisions: tuple[int, ...] = (0,) * INTERVALS
    garbage_collection_threshold: float = 0.0
    expandable_segments: bool = False
    large_segment_size: int = LARGE_SEGMENT
    per_process_memory_fraction: float = 1.0

    @classmethod
    def parse(cls, text: str) -> AllocatorSettings:
        """
        Read settings as PyTorch's environment variables give them.

        Args:
            text: Such as `expandable_segments:True,max_split_size_mb:128`; empty for the defaults.

        Raises:
            InvalidRecipeError: A key that PyTorch does not know, a value that it refuses, or another backend.

        Source:
            torch@2.13.0, c10/core/AllocatorConfig.cpp, AcceleratorAllocatorConfig::parseArgs and the parse functions it calls;
            c10/cuda/CUDAAllocatorConfig.cpp, CUDAAllocatorConfig::parseArgs.
        """
        given = _pairs(text)
        segment = _megabytes(given, "large_segment_size_mb", MIN_LARGE_ALLOCATION + MIB) or LARGE_SEGMENT
        if given.get("backend", "native") != "native":
            raise InvalidRecipeError(
                f"the allocator's backend is `{given['backend']}`; only PyTorch's own, `native`, is simulated",
                hint="leave `backend` out: cudaMallocAsync keeps its pool in the driver, and what that holds is not published",
            )
        divisions = given.get("roundup_power2_divisions")
        return cls(
            max_split_size=_megabytes(given, "max_split_size_mb", segment),
            max_non_split_rounding=_megabytes(given, "max_non_split_rounding_mb", segment),
            roundup_power2_divisions=_divisions(divisions) if divisions else (0,) * INTERVALS,
            garbage_collection_threshold=_share(given, "garbage_collection_threshold", "between 0 and 1", 0.0),
            expandable_segments=_flag(given, "expandable_segments"),
            large_segment_size=segment,
            per_process_memory_fraction=_share(given, "per_process_memory_fraction", "from 0 to 1", 1.0),
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> AllocatorSettings:
        """
        The settings that a PyTorch started here would have.

        Args:
            environment: Variables; None for those of this process.

        Raises:
            InvalidRecipeError: As `parse`.
        """
        variables = os.environ if environment is None else environment
        return cls.parse(next((variables[name] for name in VARIABLES if name in variables), ""))

    def round_size(self, nbytes: int) -> int:
        """
        Bytes of the block that a request needs.

        Source:
            c10/cuda/CUDACachingAllocator.cpp, round_size, roundup_power2_next_division;
            c10/core/AllocatorConfig.cpp, AcceleratorAllocatorConfig::roundup_power2_divisions.
        """
        octave = nbytes.bit_length() - 1
        divisions = self.roundup_power2_divisions[min(max(octave - 20, 0), INTERVALS - 1)]
        if divisions <= 1 or nbytes <= BLOCK * divisions:
            return round_up(nbytes, BLOCK)
        return round_up(nbytes, (1 << octave) // divisions)

    def segment_size(self, size: int) -> int:
        """
        Bytes that are asked of cudaMalloc for a block of `size` bytes.

        Source:
            c10/cuda/CUDACachingAllocator.cpp, get_allocation_size.
        """
        if size <= SMALL_SIZE:
            return SMALL_SEGMENT
        if size < MIN_LARGE_ALLOCATION:
            return self.large_segment_size
        return round_up(size, LARGE_ROUNDING)


_READ_KEYS = frozenset(
    {
        "backend",
        "expandable_segments",
        "garbage_collection_threshold",
        "large_segment_size_mb",
        "max_non_split_rounding_mb",
        "max_split_size_mb",
        "per_process_memory_fraction",
        "roundup_power2_divisions",
    }
)


def _pairs(text: str) -> dict[str, str]:
    """Keys and values; white space means nothing."""
    stripped = "".join(text.split())
    found: dict[str, str] = {}
    end = 0
    while end < len(stripped):
        match = _PAIR.match(stripped, end)
        if match is None:
            raise InvalidRecipeError(
                f"`{stripped[end:]}` in the allocator's settings is not of the form key:value,key:value",
                hint="write for example expandable_segments:True,max_split_size_mb:128",
            )
        key, end = match[1], match.end()
        if key not in _READ_KEYS and key not in IGNORED_KEYS:
            raise InvalidRecipeError(f"`{key}` is no setting of PyTorch's CUDA allocator", hint=f"it knows {', '.join(sorted(_READ_KEYS))}")
        found[key] = match[2]
    return found


def _megabytes(given: dict[str, str], key: str, least: int) -> int | None:
    """A size in MiB, as bytes."""
    if key not in given:
        return None
    text = given[key]
    if not text.isdecimal() or int(text) * MIB < least:
        raise _refused(key, text, f"a whole number of at least {least // MIB}")
    return int(text) * MIB


def _share(given: dict[str, str], key: str, rule: str, default: float) -> float:
    if key not in given:
        return default
    try:
        value = float(given[key])
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0 or (rule.startswith("between") and value in (0.0, 1.0)):
        raise _refused(key, given[key], rule)
    return value


def _flag(given: dict[str, str], key: str) -> bool:
    text = given.get(key, "False")
    if text not in ("True", "False"):
        raise _refused(key, text, "True or False, so capitalised")
    return text == "True"


def _divisions(text: str) -> tuple[int, ...]:
    """`4`, or `[256:1,512:2,>:8]`: divisions by the power of two, in MiB, that they begin at; `>` for all beyond the last one."""
    if not text.startswith("["):
        return (_power_of_two(text),) * INTERVALS
    divisions, last, first = [0] * INTERVALS, 0, True
    for item in filter(None, text[1:-1].split(",")):
        boundary, _, number = item.partition(":")
        value = 0 if number == "0" else _power_of_two(number)
        if boundary == ">":
            divisions[last + 1 :] = [value] * (INTERVALS - last - 1)
            continue
        last = min(_power_of_two(boundary).bit_length() - 1, INTERVALS - 1)
        if first:
            divisions[:last] = [value] * last
            first = False
        divisions[last] = value
    return tuple(divisions)


def _power_of_two(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value <= 0 or value & (value - 1):
        raise _refused("roundup_power2_divisions", text, "a power of two")
    return value


def _refused(key: str, given: str, rule: str) -> InvalidRecipeError:
    return InvalidRecipeError(f"{key} is `{given}` in the allocator's settings; it must be {rule}", hint=f"write {key}:VALUE")
