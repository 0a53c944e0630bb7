"""What every test may lean on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from planner.allocator.settings import VARIABLES

if TYPE_CHECKING:
    from tests.nvml_stand_in import Machine

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _plain_allocator() -> None:
    """PyTorch's allocator as it is without settings, whatever the machine that tests has."""
    for name in VARIABLES:
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without records and without a profile of cards, whoever runs the tests."""
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path_factory.getbasetemp() / "no-home"))


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


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--overwrite` writes the printed screens of tests/golden anew instead of comparing them."""
    parser.addoption("--overwrite", action="store_true", help="write tests/golden/*.txt anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with tests/golden/NAME.txt, or write it there under `--overwrite`."""

    def check(name: str, text: str) -> None:
        path = REPOSITORY / "tests" / "golden" / f"{name}.txt"
        if request.config.getoption("--overwrite"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")

        assert text == path.read_text(encoding="utf-8"), f"tests/golden/{name}.txt differs; pytest --overwrite writes it anew"

    return check


@pytest.fixture(scope="session")
def nvml_libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The stand-in for the driver's library, and one as drivers before 510 had it."""
    from tests.nvml_stand_in import compiled

    return compiled(tmp_path_factory.mktemp("nvml")), compiled(tmp_path_factory.mktemp("nvml_old"), "-DOLD")


@pytest.fixture
def machine(nvml_libraries: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Call it with cards of `tests.nvml_stand_in`, and this process has them."""
    from tests import nvml_stand_in

    return nvml_stand_in.Machine(*nvml_libraries, tmp_path, monkeypatch)
