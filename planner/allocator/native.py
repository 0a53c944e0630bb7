"""
`replay.c` and its two headers, compiled on this machine: a whole run through the allocator twenty times as fast as in Python.

Nothing hangs on it. It is compiled once Python would have replayed for about as long as compiling takes, if there is a compiler, and kept
in the user's cache; where that fails, or `QPLAN_COMPILE=0` is set, Python goes on with the same results.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from planner.value import NamedTuple

SOURCE = Path(__file__).with_name("replay.c")
SOURCES = (SOURCE, SOURCE.with_name("blocks.h"), SOURCE.with_name("expandable.h"))
VARIABLE = "QPLAN_COMPILE"
FLAGS = ("-std=c99", "-O2", "-shared", "-fPIC")
PATIENCE = 100_000
"""Events that Python replays before a compiler is called: about 0.1 s, which is what that takes where nothing else runs."""
WORTH = 5_000
"""Events of a run that is worth loading a compiled library for."""
_SECONDS = 20


class Outcome(NamedTuple):
    """
    What a run did: the peaks, the flushes, where it failed (-1: nowhere), and what was held at its end.

    Attributes:
        held: Of each storage the size of its block, -1 where it has none.
    """

    reserved_peak: int
    allocated_peak: int
    num_flushes: int
    failed_at: int
    allocated: int
    reserved: int
    held: Sequence[int]


class Packed(NamedTuple):
    """Events as 32-bit integers, and of each part of them as 64-bit ones: its length, how often it comes, how far storages then shift."""

    events: array[int]
    parts: array[int]


class Limits(NamedTuple):
    """
    Of a card.

    Attributes:
        capacity: Bytes that cudaMalloc can give; None for no end.
        allowed: Bytes that may be reserved of them; None for all.
        range: Bytes of addresses of an expandable segment; None where segments are fixed.
    """

    capacity: int | None = None
    allowed: int | None = None
    range: int | None = None


class Library:
    """
    The compiled allocator.

    Args:
        path: The shared library.

    Raises:
        OSError: It cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        import ctypes

        self._replay: Any = ctypes.CDLL(str(path)).qplan_replay
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._replay.argtypes = [pointer, pointer, number, pointer, number, pointer, *[number] * 5, pointer, pointer]
        self._replay.restype = ctypes.c_int

    def replay(
        self, program: Packed, flushes: Sequence[int], sizes: array[int], limits: Limits, large_segment: int
    ) -> Outcome | None:
        """
        Run births and deaths.

        Args:
            program: The events.
            flushes: Positions before which the cache is emptied.
            sizes: Bytes by storage, packed as 64-bit integers; they are rounded up to 512.
            limits: What the card has.
            large_segment: `AllocatorSettings.large_segment_size`.

        Returns:
            None where the host has no memory, or the events make no sense: Python says which.
        """
        emptied = array("q", flushes)
        held, found = array("q", bytes(8 * len(sizes))), array("q", bytes(8 * 6))
        capacity, allowed, span = (-1 if limit is None else limit for limit in limits)
        events, parts = program
        at = [data.buffer_info()[0] for data in (events, parts, emptied, sizes, held, found)]
        status = self._replay(
            at[0], at[1], len(parts) // 3, at[2], len(flushes), at[3], len(sizes), capacity, allowed, large_segment, span, at[4], at[5]
        )
        if status:
            return None
        reserved_peak, allocated_peak, num_flushes, failed_at, allocated, reserved = found
        return Outcome(reserved_peak, allocated_peak, num_flushes, failed_at, allocated, reserved, held)


class _State:
    """What this process knows: the library, that there can be none, how many events were replayed without."""

    library: Library | None = None
    is_hopeless = False
    num_events = 0


def library(num_events: int) -> Library | None:
    """
    The compiled allocator, if it is there or worth compiling; None lets Python do the work.

    Args:
        num_events: Of the run that is to be replayed.
    """
    if _State.library is not None or _State.is_hopeless or num_events < WORTH:
        return _State.library
    if os.environ.get(VARIABLE) == "0" or os.name != "posix":
        _State.is_hopeless = True
        return None
    try:
        path = place()
        if not _is_mine(path):
            _State.num_events += num_events
            if _State.num_events <= PATIENCE:
                return None
            compile_to(path)
        _State.library = Library(path)
    except (OSError, RuntimeError, AttributeError, ImportError):  # no compiler, home, room, or ctypes
        _State.is_hopeless = True
    return _State.library


def place() -> Path:
    """Where the compiled library of this source and machine is kept."""
    import zlib

    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    machine = f"{sys.platform}-{os.uname().machine}-{sys.maxsize.bit_length() + 1}"
    return Path(cache) / "qplan" / f"replay-{machine}-{zlib.crc32(b''.join(path.read_bytes() for path in SOURCES)):08x}.so"


def compile_to(path: Path, call: Callable[..., Any] | None = None) -> None:
    """
    Compile the library; it appears once it is complete.

    Args:
        path: Where.
        call: Runs a command, as `subprocess.run` does.

    Raises:
        OSError: There is no compiler, it fails, or the folder cannot be written to.
    """
    import shutil
    import subprocess

    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise FileNotFoundError("there is no C compiler")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part.so")
    try:
        (call or subprocess.run)([compiler, *FLAGS, "-o", str(part), str(SOURCE)], check=True, capture_output=True, timeout=_SECONDS)
        part.chmod(0o700)  # whatever the umask: what others may write is not loaded
        part.replace(path)
    except subprocess.SubprocessError as error:
        raise OSError(f"{compiler} does not compile the allocator") from error
    finally:
        part.unlink(missing_ok=True)


def _is_mine(path: Path) -> bool:
    """Whether the library is there, and nobody but this user could have put it there."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & 0o022
