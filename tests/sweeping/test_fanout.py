"""Tasks on other processes: real pools, real deaths."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from planner.sweeping.fanout import TRIES, Fanout, on_executor, processes

DEADLY, WRONG, FATAL = 3, 5, 9


def work(task):
    """A square; or the worker's death, an error, or one failure only."""
    number, folder = task
    if number == DEADLY:
        os._exit(1)
    if number == WRONG:
        (Path(folder) / f"wrong-{uuid4()}").touch()
        raise ValueError("five is wrong")
    if number == FATAL:
        raise KeyError("fatal")
    if number == 7 and not (Path(folder) / "seven").exists():
        (Path(folder) / "seven").touch()
        raise RuntimeError("only once")
    return number * number


def run(make, width, numbers, folder, fatal=()):
    """What becomes of each number."""
    fanout = Fanout(work, make, width, fatal)
    try:
        return {done.task[0]: done.error or done.result for done in fanout.run((number, str(folder)) for number in numbers)}
    finally:
        fanout.close()


def test_a_dead_worker_stops_nothing(tmp_path):
    """The task that kills its worker is told from those that ran beside it; all others have their results."""
    found = run(lambda: processes(2), 2, [1, 2, 3, 4, 6, 7, 8], tmp_path)

    assert found == {1: 1, 2: 4, 3: "its process died in each of 3 tries", 4: 16, 6: 36, 7: 49, 8: 64}


def test_a_task_that_fails_is_tried_again(tmp_path):
    """What fails once has its result; what fails always was tried three times, and says why."""
    (tmp_path / "counts").mkdir()
    with ThreadPoolExecutor(2) as pool:
        found = run(*on_executor(pool), [4, 5, 7], tmp_path / "counts")

    assert found == {4: 16, 5: "ValueError: five is wrong", 7: 49}
    assert sum(path.name.startswith("wrong") for path in (tmp_path / "counts").iterdir()) == TRIES == 3


def test_what_is_fatal_ends_the_whole(tmp_path):
    """An error that stands in the way of all tasks is raised."""
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyError, match="fatal"):
        run(*on_executor(pool), [1, 9, 2], tmp_path, fatal=(KeyError,))


def test_an_executor_that_breaks_is_replaced(tmp_path):
    """Where somebody's pool breaks, processes of this machine finish the work; a pool that does not break is not shut down."""
    with processes(2) as pool:
        assert run(*on_executor(pool), [1, 2], tmp_path) == {1: 1, 2: 4}
        assert pool.submit(abs, -1).result() == 1
        found = run(*on_executor(pool), [1, 3, 2], tmp_path)

    assert found == {1: 1, 2: 4, 3: "its process died in each of 3 tries"}


def test_a_function_that_makes_executors_is_called_again(tmp_path):
    """Its second executor goes on where the first broke."""
    made = []

    def make():
        made.append(processes(1))
        return made[-1]

    assert run(*on_executor(make), [3, 4], tmp_path) == {3: "its process died in each of 3 tries", 4: 16}
    assert len(made) > 1
