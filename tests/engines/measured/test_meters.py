"""What is allocated while somebody else trains: against arithmetic on known tensors, and against scripted counters of CUDA."""

from __future__ import annotations

import gc
import os

import pytest

torch = pytest.importorskip("torch")

from planner.engines.measured.meters import CudaMeter, StorageMeter  # noqa: E402 - torch may be missing
from planner.sampling import MemorySampler, device_seen  # noqa: E402 - the same
from planner.units import GIB, MIB  # noqa: E402 - the same
from tests.nvml_stand_in import A100_TOTAL, card  # noqa: E402 - the same


@pytest.fixture
def meter():
    """A meter of an empty model."""
    found = StorageMeter()
    found.start(torch.nn.Module())
    yield found
    found.stop()


def test_peaks_are_the_largest_sums_of_blocks_alive(meter):
    """Two tensors together, then one: what is alive at once, each rounded up to 512 bytes; a view is no new memory."""
    meter.enter("forward")
    a = torch.zeros(1000, dtype=torch.uint8)
    b = torch.zeros(600, dtype=torch.float32)
    c = b[10:20].view(2, 5)
    del a
    meter.enter("backward")
    d = torch.zeros(1, dtype=torch.uint8)
    meter.enter("idle")

    assert meter.allocated == {"load": 0, "idle": 0, "forward": 1024 + 2560, "backward": 2560 + 512}
    assert (c.numel(), d.numel()) == (10, 1)


def test_a_temporary_of_python_counts_and_dies(meter):
    """x * 2 + 1 holds x, x * 2 and the sum for a moment, then two of them."""
    meter.enter("forward")
    x = torch.zeros(128)
    y = x * 2 + 1
    meter.enter("backward")
    meter.enter("idle")

    assert (meter.allocated["forward"], meter.allocated["backward"]) == (3 * 512, 2 * 512)
    assert y.sum() == 128


def test_gradients_are_followed_through_backward(meter):
    """Autograd's own tensors are made by operations like all others: the gradient of a leaf rests afterwards."""
    weight = torch.zeros(256, 256, requires_grad=True)
    meter.enter("backward")
    (weight * 1.5).sum().backward()
    gc.collect()
    meter.enter("idle")
    meter.enter("after")

    assert meter.allocated["backward"] >= 2 * 4 * 256 * 256
    assert meter.allocated["idle"] == 2 * 4 * 256 * 256


def test_what_a_model_rests_on_is_there_from_the_start():
    """Parameters and buffers, a tied one once, and a storage that was freed again leaves with its tensor."""
    model = torch.nn.Linear(256, 256, bias=False)
    model.tied = model.weight
    model.register_buffer("mask", torch.zeros(100, dtype=torch.uint8))
    meter = StorageMeter()
    meter.start(model)
    try:
        meter.enter("forward")
        model.mask = None
        meter.enter("backward")
    finally:
        meter.stop()
    meter.stop()

    assert meter.allocated["load"] == 4 * 256 * 256 + 512
    assert meter.allocated["backward"] == 4 * 256 * 256


def test_the_same_phase_again_goes_on(meter):
    """Entering the phase that runs ends nothing."""
    meter.enter("forward")
    meter.enter("forward")
    a = torch.zeros(1024)
    meter.enter("forward")
    del a
    meter.enter("idle", was="save")

    assert meter.allocated["save"] == 4096
    assert "forward" not in meter.allocated


def test_nothing_is_followed_after_the_end():
    """The mode is gone: what is made later is not counted."""
    meter = StorageMeter()
    meter.start(torch.nn.Module())
    meter.stop()
    before = meter._now
    kept = torch.zeros(1000)

    assert (meter._now, kept.numel()) == (before, 1000)


@pytest.fixture
def counters(monkeypatch):
    """Torch's counters of a card, as a test sets them."""
    found = {"max_memory_allocated": 0, "max_memory_reserved": 0, "memory_reserved": 0, "resets": 0}
    for name in ("max_memory_allocated", "max_memory_reserved", "memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: found[name])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: found.update(resets=found["resets"] + 1))
    return found


def test_cuda_counters_are_read_and_reset_between_phases(counters):
    """What was before the start is loading; each phase has its own most; equal phases reset nothing."""
    meter = CudaMeter(None)
    counters.update(max_memory_allocated=5 * GIB, max_memory_reserved=6 * GIB)
    meter.start(torch.nn.Module())
    for phase, allocated in (("forward", 2 * GIB), ("backward", 3 * GIB), ("backward", 4 * GIB)):
        meter.enter(phase)
        counters.update(max_memory_allocated=allocated, max_memory_reserved=6 * GIB)
    meter.stop()

    assert meter.allocated == {"load": 5 * GIB, "idle": 5 * GIB, "forward": 2 * GIB, "backward": 4 * GIB}
    assert meter.reserved["backward"] == 6 * GIB
    assert counters["resets"] == 4


def test_the_context_is_what_the_driver_sees_more_than_torch_reserves(counters, machine):
    """NVML says 3 GiB for this process at a moment at which torch has reserved 2560 MiB: 512 MiB are its context."""
    machine(card(memory=f"{A100_TOTAL} 0 {3 * GIB}", processes=f"{os.getpid()}:{3 * GIB}:-"))
    counters.update(memory_reserved=2560 * MIB)
    meter = CudaMeter(MemorySampler(device_seen(), os.getpid()).start())
    meter.start(torch.nn.Module())
    meter.enter("forward")
    meter.stop()
    meter.sampler.stop()

    assert meter.contexts == [512 * MIB] * 3
