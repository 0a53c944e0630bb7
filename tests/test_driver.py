"""Whether a machine may have NVIDIA's driver is told by its files alone."""

from __future__ import annotations

import sys

import pytest

from planner import driver


@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_of_the_driver_leaves_it_open(is_there, tmp_path, monkeypatch):
    """On Linux, where pynvml is not loaded yet."""
    file = tmp_path / "nvidiactl"
    if is_there:
        file.touch()
    monkeypatch.setattr(driver, "FILES", (str(file),))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)

    assert driver.may_be_there() is is_there


def test_elsewhere_it_is_always_open(monkeypatch):
    """Windows has no such files."""
    monkeypatch.setattr(driver, "FILES", ())
    monkeypatch.setattr(sys, "platform", "win32")

    assert driver.may_be_there()
