"""A real local Ray."""

from __future__ import annotations

import os

import pytest

from planner.errors import MissingExtraError, UnavailableError
from planner.sweeping.clusters import RayExecutor
from planner.sweeping.fanout import Fanout


def work(number):
    """A square, or the worker's death."""
    if number == 3:
        os._exit(1)
    return number * number


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_a_local_ray_runs_tasks_and_survives_a_dead_worker():
    """Tasks run in other processes; the one that kills its worker fails alone, after three tries."""
    pytest.importorskip("ray")
    executor = RayExecutor("local", num_cpus=2)
    try:
        fanout = Fanout(work, lambda: executor, executor.num_cpus)
        found = {done.task: done.error or done.result for done in fanout.run([1, 2, 3, 4])}
        other = executor.submit(os.getpid).result()
    finally:
        executor.shutdown()

    assert {number: found[number] for number in (1, 2, 4)} == {1: 1, 2: 4, 4: 16}
    assert "WorkerCrashedError" in found[3]
    assert other != os.getpid()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")
def test_a_cluster_that_is_not_there():
    """It is a sentence with the address, not Ray's traceback."""
    pytest.importorskip("ray")
    with pytest.raises(UnavailableError, match=r"there is no Ray cluster at `127\.0\.0\.1:1`: Connection refused"):
        RayExecutor("127.0.0.1:1")


def test_ray_is_an_extra(monkeypatch):
    """Without it, the hint is the command that installs it."""
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError) as missing:
        RayExecutor("local")

    assert missing.value.hint == 'pip install "qplan[ray]"'
