"""Whether this machine may have NVIDIA's driver: a look at a few files, which costs a cold start nothing."""

from __future__ import annotations

import os
import sys

FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvmap", "/proc/driver/nvidia/version")
"""What NVIDIA's driver, WSL's and Jetson's put there on Linux; containers get the first from the host."""


def may_be_there() -> bool:
    """Whether device files leave it open that NVML would find a card: loading pynvml takes 10 ms, a look at them none."""
    return "pynvml" in sys.modules or sys.platform != "linux" or any(map(os.path.exists, FILES))
