"""Tests of `planner.allocator`'s modules; what it does as a whole is in `tests/test_allocator.py`."""
