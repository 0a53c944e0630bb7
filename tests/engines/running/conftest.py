"""A recorder that is running, for tests of what runs under it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def recorder() -> Iterator[Any]:
    """Under it everything runs as on an A100."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    from planner.engines.traced.run import recording

    with recording((8, 0)) as running:
        yield running
