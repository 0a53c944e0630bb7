"""bitsandbytes' kernels from a second copy of their module."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
bnb = pytest.importorskip("bitsandbytes")
pytest.importorskip("transformers")

from planner.engines.running.backends import load_backend  # noqa: E402


def test_a_copy_computes_what_the_library_does() -> None:
    """The copied kernel and the registered operation quantise to the same bits, and no second module is registered."""
    import sys

    kernels, module = load_backend("default", "test")
    x = torch.randn(64, 64)
    packed, absmax = kernels["bitsandbytes::quantize_4bit"](x, 64, "nf4", torch.uint8)
    expected, expected_absmax = torch.ops.bitsandbytes.quantize_4bit(x, 64, "nf4", torch.uint8)

    assert torch.equal(packed.flatten(), expected.flatten())
    assert torch.equal(absmax.flatten(), expected_absmax.flatten())
    assert module.__name__ not in sys.modules
