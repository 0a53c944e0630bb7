"""Storages are freed by reference counting alone, and views keep them alive."""

from __future__ import annotations

from planner.dtypes import DType
from planner.ledger import Category
from planner.schedule import Tape
from planner.tensors import Leaf, Storage, Tensor


def test_a_storage_writes_its_birth_and_its_death():
    """An index when it is made, its complement when the last reference goes."""
    tape = Tape()
    first = Storage(tape, 100, "first", Category.INPUT)
    second = Storage(tape, 200, "second", Category.LOGITS)
    del first
    del second

    assert [0, 1, ~0, ~1] == tape.events
    assert [100, 200] == [nbytes for nbytes, *_ in tape.storages]
    assert [Category.INPUT, Category.LOGITS] == [category for *_, category in tape.storages]


def test_a_view_keeps_the_memory():
    """A detached tensor is a leaf on the same storage, which dies with the last of the two."""
    tape = Tape()
    x = tape.new(10, DType.BF16, "x")
    view = x.detach(requires_grad=True)
    del x

    assert [0] == tape.events
    assert view.requires_grad and view.node is None

    del view

    assert [0, ~0] == tape.events


def test_a_parameter_has_no_memory_of_its_own():
    """It rests outside the tape: making and dropping one writes nothing."""
    tape = Tape()
    weight = Tensor(None, 10, DType.FP32, requires_grad=True)
    del weight

    assert [] == tape.events


def test_a_leaf_shares_memory_and_needs_a_gradient():
    """`x.detach().requires_grad_()` on what the tape allocated."""
    tape = Tape()
    x = tape.new(10, DType.BF16, "x")
    leaf = Leaf.of(x)

    assert leaf.storage is x.storage
    assert leaf.requires_grad and not x.requires_grad


def test_bytes_are_elements_times_their_size():
    """A scope and a category are written beside them."""
    tape = Tape()
    tape.scope, tape.category = "mlp", Category.TEMPORARY
    held = [tape.new(3, dtype, dtype.value) for dtype in (DType.BOOL, DType.BF16, DType.FP32, DType.INT64)]

    assert [(3, "mlp"), (6, "mlp"), (12, "mlp"), (24, "mlp")] == [(nbytes, scope) for nbytes, scope, *_ in tape.storages]
    assert {Category.TEMPORARY} == {category for *_, category in tape.storages}
    assert len(held) == 4
