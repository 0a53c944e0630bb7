"""
The notebooks run from top to bottom, and what they show is what they would show now.

Each is executed in a copy, without a GPU and without the network. Pictures are compared as one sees them, since versions of what draws
them differ by a pixel; cells tagged `volatile` (times, this machine) are run and not compared; cells tagged `slow` run with the slow
tests. `pytest tests/test_notebooks.py --overwrite` writes the outputs anew, with `-m slow` those of the slow cells.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAMES = (
    "01_where_the_memory_goes",
    "02_quantization",
    "03_sweep_and_frontier",
    "04_verify",
    "05_how_good_is_it",
)
LARGEST_BYTES = 400_000
LARGEST_PICTURE_BYTES = 120_000
MOST_DIFFERING = 0.05
"""The part of a picture's pixels that may look otherwise: the edges of letters and lines, where another version draws them."""
COMPARED = ("text/plain", "text/html")
MARKS = ("/ho" + "me/", "/ro" + "ot/", "/wo" + "rk/", "/Us" + "ers/", "/tm" + "p/", "site-packages")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")


def read(name: str) -> Any:
    """A notebook as it is committed."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def tags(cell: Any) -> set[str]:
    """The tags of a cell."""
    return set(cell.metadata.get("tags", ()))


def execute(name: str, folder: Path, repository: Path, *, slow: bool) -> Any:
    """The notebook after a run from top to bottom in an empty folder; slow cells only where they are asked for."""
    from nbclient import NotebookClient

    notebook = read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            if "slow" in tags(cell) and not slow:
                cell.source = ""
    variables = {"PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "PYTHONHASHSEED": "0"}
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, resources=where, store_widget_state=False)
    client.execute(env={**os.environ, **variables})
    return notebook


def tidy(outputs: list[Any]) -> list[Any]:
    """Outputs without what only this run has: what went to stderr, counters; what was printed in pieces is one."""
    found: list[Any] = []
    for output in map(copy.deepcopy, outputs):
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if found and found[-1].output_type == "stream":
                found[-1].text += output.text
                continue
        output.pop("execution_count", None)
        if output.output_type == "execute_result":  # the same as displayed, and without a counter
            output = nbformat.v4.new_output("display_data", data=output.data, metadata=output.metadata)
        found.append(output)
    return found


def words(outputs: list[Any]) -> list[Any]:
    """What is compared of outputs: all text; of pictures, that they are there."""
    found = []
    for output in tidy(outputs):
        if output.output_type == "stream":
            found.append(output.text)
        elif output.output_type == "error":
            found.append(f"{output.ename}: {output.evalue}")
        else:
            found.append({kind: output.data[kind] if kind in COMPARED else "" for kind in sorted(output.data)})
    return found


def pictures(outputs: list[Any]) -> list[bytes]:
    """The pictures of outputs."""
    return [base64.b64decode(output.data["image/png"]) for output in outputs if "image/png" in output.get("data", {})]


def differing(before: bytes, after: bytes) -> float:
    """The part of the pixels that look otherwise, where one picture is laid over the other; all of them where their sizes are far apart."""
    from matplotlib.image import imread

    a, b = (imread(io.BytesIO(picture), format="png")[..., :3] for picture in (before, after))
    if max(abs(x - y) for x, y in zip(a.shape, b.shape, strict=True)) > 10:
        return 1.0
    height, width = (min(x, y) for x, y in zip(a.shape[:2], b.shape[:2], strict=True))
    return float((abs(a[:height, :width] - b[:height, :width]).max(axis=2) > 0.25).mean())


def check(request: pytest.FixtureRequest, name: str, ran: Any, *, slow: bool) -> None:
    """What the committed notebook shows is what the run shows; under `--overwrite` it is written."""
    committed = read(name)
    code = [
        (old, new)
        for old, new in zip(committed.cells, ran.cells, strict=True)
        if old.cell_type == "code" and (slow or "slow" not in tags(old))
    ]
    if request.config.getoption("--overwrite"):
        for old, new in code:
            old.outputs, old.execution_count = tidy(new.outputs), None
        nbformat.write(committed, FOLDER / f"{name}.ipynb")
        return

    for old, new in code:
        if "volatile" not in tags(old):
            assert words(old.outputs) == words(new.outputs), f"{name}: a cell shows something else now:\n{old.source}"
            for before, after in zip(pictures(old.outputs), pictures(new.outputs), strict=True):
                assert differing(before, after) < MOST_DIFFERING, f"{name}: a cell draws something else now:\n{old.source}"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_what_it_would_show_now(name, request, tmp_path, repository):
    """Every cell but the slow ones runs, in order, and prints and shows what is committed."""
    check(request, name, execute(name, tmp_path, repository, slow=False), slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if any("slow" in tags(cell) for cell in read(name).cells)])
def test_the_slow_cells_too(name, request, tmp_path, repository):
    """The same with the cells that take long."""
    check(request, name, execute(name, tmp_path, repository, slow=True), slow=True)


def test_every_notebook_is_run():
    """There is no notebook that these tests do not know."""
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_in_order(name):
    """Valid, of modest size, free of errors and of a machine's paths; its first code cell installs qplan, and only where it is missing."""
    path = FOLDER / f"{name}.ipynb"
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    text = json.dumps([cell.source for cell in notebook.cells] + [words(cell.outputs) for cell in code])

    assert path.stat().st_size < LARGEST_BYTES
    assert 'find_spec("planner") is None' in code[0].source
    assert "qplan[plot,torch]" in code[0].source
    assert code[0].outputs == []
    assert [mark for mark in MARKS if mark in text] == []
    assert {output.output_type for cell in code for output in cell.outputs} <= {"stream", "display_data"}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_another_picture_is_noticed():
    """A picture is like itself; one with an eighth of it in another colour is not."""
    from matplotlib.image import imsave

    drawn = np.ones((40, 40, 3))
    other = drawn.copy()
    other[:5] = (0.7, 0.2, 0.2)
    before, after = io.BytesIO(), io.BytesIO()
    imsave(before, drawn)
    imsave(after, other)

    assert differing(before.getvalue(), before.getvalue()) == 0
    assert differing(before.getvalue(), after.getvalue()) == 0.125 > MOST_DIFFERING


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_small_and_say_nothing_of_a_machine(name):
    """A picture is a PNG of modest size whose only remark is the program that drew it."""
    for cell in read(name).cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                content = base64.b64decode(output.data["image/png"])

                assert len(content) < LARGEST_PICTURE_BYTES
                assert remarks(content) == [b"Software\0qplan"]


def remarks(png: bytes) -> list[bytes]:
    """The text chunks of a PNG."""
    found, at = [], 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        if png[at + 4 : at + 8] in (b"tEXt", b"iTXt", b"zTXt", b"eXIf", b"tIME"):
            found.append(png[at + 8 : at + 8 + size])
        at += 12 + size
    return found
