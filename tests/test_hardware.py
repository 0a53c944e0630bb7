"""The host's memory."""

from __future__ import annotations

import pytest

from planner import hardware
from planner.hardware import Memory


def test_what_is_available_counts_as_free(monkeypatch, tmp_path):
    """The figures of a DGX Spark; its page cache can be had."""
    (tmp_path / "meminfo").write_text("MemTotal: 127600748 kB\nMemFree: 4 kB\nMemAvailable:   118566368 kB\nHugePages_Total: 0\n")
    monkeypatch.setattr(hardware, "_HOST_MEMORY", tmp_path / "meminfo")

    assert hardware.host_memory() == Memory(127600748 << 10, (127600748 - 118566368) << 10, 118566368 << 10)


@pytest.mark.parametrize(
    "text", [None, "", "MemTotal: 5 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n", "no colon\n", "MemTotal:\nMemAvailable:\n"]
)
def test_a_host_that_does_not_tell_is_none(monkeypatch, tmp_path, text):
    """No file, as on Windows, or one of another shape."""
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(hardware, "_HOST_MEMORY", tmp_path / "meminfo")

    assert hardware.host_memory() is None
