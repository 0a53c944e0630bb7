"""What every test may lean on."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of facts and published measurements that may stand beside the checkout."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "measurements").is_dir():
        pytest.skip("the published measurements (../shared) are not beside this checkout")
    return folder
