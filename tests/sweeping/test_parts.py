"""What is kept of a sweep that is under way."""

from __future__ import annotations

import numpy as np
import pytest

from planner.errors import InvalidOutputError
from planner.sweeping.parts import Parts, Points, pack, unpack
from planner.sweeping.table import Table, numbers, texts


def table() -> Table:
    """Constants, holes, large integers and texts."""
    return Table(
        {
            "same": numbers(np.full(4, 7)),
            "size": numbers(np.array([-1, 1 << 40, 300, 0]), np.array([True, False, False, False])),
            "on": numbers(np.array([True, False, True, True])),
            "share": numbers(np.array([0.1, 0.2, 0.3, 0.4])),
            "word": texts(np.array([-1, 0, 1, 1]), ["x", "y"]),
        }
    )


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2], []])
def test_a_table_is_read_as_it_was_written(tmp_path, rows):
    """Every kind of column comes back, one row and none included."""
    written = table().take(np.array(rows, np.int64))
    with (tmp_path / "part").open("wb") as file:
        pack(written, file)
    read = unpack(tmp_path / "part")

    assert list(read.rows()) == list(written.rows())
    assert [column.numbers.dtype for column in read.columns.values()] == [column.numbers.dtype for column in written.columns.values()]


def test_parts_are_found_again(tmp_path):
    """A second process of the same sweep finds the parts and the points of the first; a finished sweep leaves nothing."""
    first = Parts(tmp_path / "out.csv", "abc")
    first.keep(0, table())
    first.points.keep((0, 5, 1), [1, "phase", None])
    first.close()
    again = Parts(tmp_path / "out.csv", "abc")

    assert (again.has(0), again.has(1)) == (True, False)
    assert list(again.read(0).rows()) == list(table().rows())
    assert again.points.known == {(0, 5, 1): [1, "phase", None]}
    assert [list(found.rows()) for found in again.tables()] == [list(table().rows())]
    again.become(lambda file: file.write(b"all"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.csv", b"all")]


def test_parts_of_another_sweep_are_refused(tmp_path):
    """They are neither used nor thrown away, unless that is asked for."""
    Parts(tmp_path / "out.csv", "abc").keep(0, table())
    with pytest.raises(InvalidOutputError, match="holds parts of another sweep") as refused:
        Parts(tmp_path / "out.csv", "abd")

    assert "--restart" in str(refused.value.hint)
    assert not Parts(tmp_path / "out.csv", "abd", restart=True).has(0)


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    """Of a process that was killed while it wrote, every whole line counts, and what follows is readable."""
    points = Points(tmp_path / "points")
    points.keep((0, 1), 1)
    points.close()
    with (tmp_path / "points").open("ab") as file:
        file.write(b"[[0, 2], 2")
    again = Points(tmp_path / "points")
    again.keep((0, 3), 3)
    again.close()

    assert again.known == {(0, 1): 1, (0, 3): 3}
    assert Points(tmp_path / "points").known == {(0, 1): 1, (0, 3): 3}


def test_a_part_that_is_no_part(tmp_path):
    """A file that was damaged is named."""
    (tmp_path / "000000.npz").write_bytes(b"nonsense")
    with pytest.raises(InvalidOutputError, match="is no part of a sweep"):
        unpack(tmp_path / "000000.npz")
