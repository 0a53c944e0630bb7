"""
A child process that is watched: it tells what it does over a pipe of its own, and leaves nothing behind, however it or its parent ends.

The child leads a session of its own, so that a Ctrl-C in the terminal reaches the parent alone, and the parent ends the whole group. A
watchdog in the group holds the read end of a pipe whose other end the parent has: when the parent is gone, the group is killed. The child
may hang in C code, be stopped or have children of its own; the watchdog does nothing but wait.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from planner.errors import UnavailableError
from planner.value import Value

FD_VARIABLE = "QPLAN_MESSAGES_FD"
"""The variable by which a child knows the pipe for its messages."""

_TAIL = 1 << 14
_TICK_S = 0.05
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Message = dict[str, Any]
How = Literal["finished", "failed", "killed", "timed_out", "over_memory"]


class Ending(Value):
    """
    How a child ended.

    Attributes:
        how: `finished` (exit code 0), `failed` (another one), `killed` (by a signal that was not ours), `timed_out`, `over_memory`.
        exit_code: Where it exited by itself.
        signal: Where it was killed.
        messages: What it had said, in order.
        stderr: The end of what it wrote to standard error and output; for people, not for records.
    """

    how: How
    exit_code: int | None = None
    signal: int | None = None
    messages: tuple[Message, ...] = field(default=(), repr=False)
    stderr: str = field(default="", repr=False)

    @property
    def sentence(self) -> str:
        """How, in words."""
        if self.signal is not None and self.how == "killed":
            return f"was killed by {signal.Signals(self.signal).name}"
        words = {"timed_out": "ran into its time limit and was ended", "over_memory": "held more RAM than it may and was ended"}
        return words.get(self.how, f"ended with exit code {self.exit_code}")


def supervise(
    command: Sequence[str],
    job: Mapping[str, Any],
    *,
    timeout_s: float,
    on_message: Callable[[Message], None] | None = None,
    rss_limit_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ending:
    """
    Run a child to its end.

    Args:
        command: Its program and arguments; the program calls `attend` first of all.
        job: What it is to do, as JSON; it reads it from standard input.
        timeout_s: Seconds after which it is killed.
        on_message: Is told of each message when it comes. What it raises ends the child and is raised here.
        rss_limit_bytes: RAM (of the child alone) beyond which it is killed, where the system tells.
        environment: Variables beside this process's own.

    Raises:
        UnavailableError: The system has no sessions and pipes to inherit (Windows without WSL), or the program is not there.
        KeyboardInterrupt: Ctrl-C; the child is gone.
    """
    if os.name != "posix":
        raise UnavailableError("measuring needs a POSIX system: Linux, macOS or WSL", hint="run it under WSL")
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(  # noqa: S603  # this very package's program
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(writing,),
            env={**os.environ, **(environment or {}), FD_VARIABLE: str(writing)},
        )
    except OSError as error:
        os.close(reading)
        raise UnavailableError(f"the measuring process did not start: {error.strerror or error}", hint="see qplan doctor") from error
    finally:
        os.close(writing)
    watch = _Watch(process, reading, on_message, time.monotonic() + timeout_s, rss_limit_bytes)
    try:
        watch.give(job)
        how = watch.follow()
    finally:
        _end(process)
        watch.close()
    return watch.ending(how)


class _Watch:
    """The parent's side of one child."""

    def __init__(
        self, process: subprocess.Popen[bytes], reading: int, on_message: Callable[[Message], None] | None, deadline: float,
        rss_limit_bytes: int | None,
    ) -> None:  # fmt: skip
        self.process, self.reading, self.on_message = process, reading, on_message
        self.deadline, self.rss_limit_bytes = deadline, rss_limit_bytes
        self.messages: list[Message] = []
        self.tail: deque[bytes] = deque(maxlen=64)
        self._line = b""
        self._selector = selectors.DefaultSelector()
        assert process.stdout is not None
        for fd in (reading, process.stdout.fileno()):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ)

    def give(self, job: Mapping[str, Any]) -> None:
        """One line; the pipe stays open, for it is what the watchdog watches. A child that is gone already does not read it."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(dict(job)).encode() + b"\n")
            self.process.stdin.flush()

    def follow(self) -> Literal["timed_out", "over_memory"] | None:
        """Until it ends; the reason for which it has to be ended, if there is one."""
        while self.process.poll() is None:
            if time.monotonic() > self.deadline:
                return "timed_out"
            if self.rss_limit_bytes is not None and _rss(self.process.pid) > self.rss_limit_bytes:
                return "over_memory"
            self._read(_TICK_S)
        while self._read(0.0):
            pass
        return None

    def _read(self, timeout_s: float) -> bool:
        """What has come; whether there may be more."""
        found = False
        for key, _ in self._selector.select(timeout_s):
            chunk = os.read(key.fd, 1 << 16)
            if not chunk:
                self._selector.unregister(key.fd)
                continue
            found = True
            if key.fd == self.reading:
                self._take(chunk)
            else:
                self.tail.append(chunk)
        return found

    def _take(self, chunk: bytes) -> None:
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.messages.append(message)
            if self.on_message is not None:
                self.on_message(message)

    def close(self) -> None:
        """Give the pipes back."""
        self._selector.close()
        os.close(self.reading)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()

    def ending(self, how: Literal["timed_out", "over_memory"] | None) -> Ending:
        """What there is to say of it, once it is gone."""
        code = self.process.returncode
        said = tuple(self.messages), b"".join(self.tail)[-_TAIL:].decode(errors="replace")
        if how is not None:
            return Ending(how, None, -code if code < 0 else None, *said)
        if code < 0:
            return Ending("killed", None, -code, *said)
        return Ending("finished" if code == 0 else "failed", code, None, *said)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the group, and wait for its leader."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _rss(pid: int) -> int:
    """Bytes of RAM that a process holds; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


class Channel:
    """
    The child's side: how it speaks to its parent.

    Args:
        fd: The pipe for messages.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        """One message, whole: from any thread. A parent that is gone hears nothing."""
        line = json.dumps(dict(message)).encode() + b"\n"
        with self._lock, contextlib.suppress(BrokenPipeError):
            while line:
                line = line[os.write(self._fd, line) :]


def attend() -> tuple[Channel, Message]:
    """
    What a child does first of all, before it imports what is heavy: it sets its watchdog, and reads its job.

    Raises:
        UnavailableError: It was not started by `supervise`.
    """
    try:
        fd = int(os.environ.pop(FD_VARIABLE))
    except (KeyError, ValueError):
        raise UnavailableError("this program measures for `qplan verify`, which starts it", hint="qplan verify MODEL") from None
    os.set_inheritable(fd, False)
    line = b""
    while not line.endswith(b"\n"):  # byte by byte: what a buffer took could not be seen by the watchdog
        byte = os.read(0, 1)
        if not byte:
            sys.exit(1)
        line += byte
    _set_watchdog(fd)
    return Channel(fd), json.loads(line)


def _set_watchdog(fd: int) -> None:
    """A process that kills its group when standard input ends: the parent is gone. It holds none of the pipes that the parent reads."""
    leader = os.getpid()
    if os.fork() == 0:
        os.close(fd)
        for out in (1, 2):
            os.close(out)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            try:
                if not os.read(0, 1):
                    break
            except OSError:
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)
        os._exit(0)
    if sys.platform == "linux":  # the child itself at once, should the watchdog have been killed
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
