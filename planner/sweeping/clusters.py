"""Ray as an executor: tasks on a cluster, or on a local one that is started for them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from planner.errors import UnavailableError
from planner.sweeping.table import import_extra


class RayExecutor(Executor):
    """
    Runs functions as Ray tasks. A worker that dies fails its own task alone.

    Args:
        address: Of a running cluster, such as `ray://head:10001` or `auto`; `local` starts one on this machine.
        num_cpus: CPUs of a local cluster; None for all.

    Raises:
        MissingExtraError: Ray is not installed.
        UnavailableError: There is no cluster at the address.
    """

    def __init__(self, address: str, num_cpus: int | None = None) -> None:
        self.ray = import_extra("ray")
        self._is_mine = not self.ray.is_initialized()
        if self._is_mine:
            _check_reachable(address)
            local = {"num_cpus": num_cpus, "include_dashboard": False} if address == "local" else {}
            try:
                self.ray.init(address, log_to_driver=False, configure_logging=False, **local)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                raise _no_cluster(address, " ".join(str(error).split())[:200]) from error
        self._run = self.ray.remote(max_retries=0)(_call)

    @property
    def num_cpus(self) -> int:
        """CPUs of the whole cluster."""
        return max(int(self.ray.cluster_resources().get("CPU", 1)), 1)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn(*args, **kwargs)` on one CPU of the cluster."""
        future: Future[Any] = self._run.remote(fn, args, kwargs).future()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._is_mine and self.ray.is_initialized():
            self.ray.shutdown()


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


def _check_reachable(address: str) -> None:
    """Ask `host:port` for a connection: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, getattr(error, "strerror", None) or str(error)) from error


def _no_cluster(address: str, reason: str) -> UnavailableError:
    return UnavailableError(f"there is no Ray cluster at `{address}`: {reason}", hint="pass its address, or --ray local")
