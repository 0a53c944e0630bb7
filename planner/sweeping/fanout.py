"""
Tasks on other processes: as they finish, tried again where they fail, and none lost to a worker that dies.

Any executor with `submit` will do: threads, processes, a cluster's. Where a pool breaks because a worker died, nobody knows whose fault it
was: the tasks that were under way are tried one by one in a new pool, so that the one that kills its worker is told from the others.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any, Protocol

from planner.value import NamedTuple

TRIES = 3
"""How often a task is tried that fails: once, and twice again."""


class Submits(Protocol):
    """What runs tasks: `concurrent.futures.Executor` and its like."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Run `fn(*args)` somewhere."""


class Done(NamedTuple):
    """
    A task that is over.

    Attributes:
        task: It.
        result: What it gave; None where it failed.
        error: Why it failed each time, in a sentence; None where it did not.
    """

    task: Any
    result: Any
    error: str | None = None


class _Try(NamedTuple):
    task: Any
    tries: int


class _Process(SpawnProcess):
    """A process that is told of no main module."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 - multiprocessing's name
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)  # noqa: SLF001
        finally:
            sys.modules["__main__"] = main


class _Context(SpawnContext):
    Process = _Process


class _Borrowed:
    """Somebody else's executor: it is used, and not shut down."""

    def __init__(self, executor: Submits) -> None:
        self.submit = executor.submit


def processes(count: int) -> ProcessPoolExecutor:
    """
    A pool of fresh Python processes on this machine, each of which does one task after another. They import what a task needs, and never
    the script that is running here: it needs no `if __name__ == "__main__"`.

    Args:
        count: How many.
    """
    return ProcessPoolExecutor(count, mp_context=_Context())


def on_executor(executor: Submits | Callable[[], Submits]) -> tuple[Callable[[], Submits], int]:
    """
    What makes an executor, and how many tasks it does at a time.

    Args:
        executor: One that is there, or a function that makes one. Where one that is there breaks, processes of this machine take over.
    """
    if isinstance(executor, Executor) or hasattr(executor, "submit"):
        width = _width(executor)
        borrowed = [_Borrowed(executor)]
        return (lambda: borrowed.pop() if borrowed else processes(width)), width
    made = [executor()]
    width = _width(made[0])
    return (lambda: made.pop() if made else executor()), width


def _width(executor: Any) -> int:
    """How many tasks an executor does at a time, where it says so."""
    found = getattr(executor, "num_cpus", None) or getattr(executor, "_max_workers", None) or os.cpu_count()
    return int(found or 1)


class Fanout:
    """
    Runs one function on many tasks.

    Args:
        function: What to do with a task; what it raises fails the task. A module's own function, as other processes must find it.
        make: Makes an executor; called again where one breaks.
        width: How many tasks are under way at a time.
        fatal: What ends the whole when a task raises it.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        make: Callable[[], Submits],
        width: int,
        fatal: tuple[type[BaseException], ...] = (),
    ) -> None:
        self.function, self.make, self.width, self.fatal = function, make, max(width, 1), fatal
        self.executor: Submits | None = None
        self._again: deque[_Try] = deque()
        self._suspects: deque[_Try] = deque()
        self._running: dict[Future[Any], _Try] = {}

    def run(self, tasks: Iterable[Any]) -> Iterator[Done]:
        """
        The tasks as they finish.

        Args:
            tasks: Taken as they are needed; None is no task.
        """
        source = (_Try(task, 0) for task in tasks)
        while True:
            self._fill(source)
            if self._running:
                finished, _ = wait(self._running, return_when=FIRST_COMPLETED)
                yield from (done for future in finished if (done := self._settle(future)) is not None)
            elif self._suspects:
                self.close()
                yield self._alone(self._suspects.popleft())
            elif not self._again:
                return

    def _fill(self, source: Iterator[_Try]) -> None:
        """Hand tasks out, as many as are done at a time; none while a worker's death is looked into."""
        while not self._suspects and len(self._running) < self.width:
            found = self._again.popleft() if self._again else next(source, None)
            if found is None:
                return
            try:
                self._running[self._submit(found.task)] = found
            except BrokenExecutor:
                self._suspects.append(found)

    def _settle(self, future: Future[Any]) -> Done | None:
        """What became of a task; None where it is tried again."""
        found = self._running.pop(future)
        error = future.exception()
        if error is None:
            return Done(found.task, future.result())
        if isinstance(error, self.fatal):
            raise error
        if isinstance(error, BrokenExecutor):
            self._suspects.append(found)
        elif found.tries + 1 < TRIES:
            self._again.append(_Try(found.task, found.tries + 1))
        else:
            return Done(found.task, None, told(error))
        return None

    def _alone(self, found: _Try) -> Done:
        """A task with a pool to itself, until it is done or has failed as often as it may."""
        error: BaseException | None = None
        for _ in range(found.tries, TRIES):
            try:
                return Done(found.task, self._submit(found.task).result())
            except self.fatal:
                raise
            except BrokenExecutor as broken:
                error = broken
                self.close()
            except Exception as failed:  # noqa: BLE001 - whatever a task raises is its own
                error = failed
        return Done(found.task, None, told(error))

    def _submit(self, task: Any) -> Future[Any]:
        if self.executor is None:
            self.executor = self.make()
        return self.executor.submit(self.function, task)

    def close(self) -> None:
        """Let go of the executor; the next task gets a new one."""
        executor, self.executor = self.executor, None
        if isinstance(executor, Executor):
            executor.shutdown(wait=False, cancel_futures=True)


def told(error: BaseException | None) -> str:
    """An error in one sentence."""
    if isinstance(error, BrokenExecutor):
        return f"its process died in each of {TRIES} tries"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
