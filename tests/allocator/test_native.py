"""The compiled allocator against the one in Python, which is held to PyTorch's own: the same outcome to the byte."""

from __future__ import annotations

import os
import shutil
import subprocess
from array import array
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import stack as stacks
from planner.allocator import AllocatorSettings, CachingAllocator, native
from planner.allocator.native import Library, Limits, compile_to, place
from planner.allocator.program import Ending, Part, Program, _ending, _run
from planner.architecture import build_spec
from planner.catalog import find_checkpoint
from planner.engines.analytic import analyse
from planner.recipe import make_recipe
from planner.unrolling import unroll_events

KIB, MIB = 1 << 10, 1 << 20
needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="needs a C compiler")
AHEAD = cycle((0, 4, None))
MODELS = (
    "meta-llama/Llama-2-7b-hf",
    "Qwen/Qwen3-0.6B",
    "google/gemma-2-2b",
    "openai-community/gpt2",
    "Qwen/Qwen1.5-MoE-A2.7B",
)
RECIPES: tuple[dict[str, Any], ...] = (
    {"seq_len": 512},
    {"seq_len": 700, "batch_size": 3, "kbit_prepare": False, "gradient_checkpointing": False, "attn": "eager"},
    {"method": "lora", "seq_len": 2048, "optim": "adamw_torch"},
    {"method": "full", "seq_len": 300, "grad_accum": 2, "optim": "adafactor"},
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Compiled for these tests."""
    path = tmp_path_factory.mktemp("native") / "replay.so"
    compile_to(path)
    return Library(path)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has not looked for a library, and an empty cache."""
    monkeypatch.setattr(native._State, "library", None)
    monkeypatch.setattr(native._State, "is_hopeless", False)
    monkeypatch.setattr(native._State, "num_events", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(native.VARIABLE, raising=False)
    return tmp_path


def both(library: Library, program: Program, sizes: Sequence[int], capacity: int | None, given: AllocatorSettings) -> tuple[Ending, Ending]:
    """What C and Python make of a run."""
    allocator = CachingAllocator(capacity, given)
    found = library.replay(program.packed, program.flushes, array("q", sizes), allocator.limits, given.large_segment_size)
    assert found is not None
    return _ending(found), _run(program, sizes, allocator)


SIZES = st.one_of(
    st.just(0),
    st.integers(1, 4 * KIB),
    st.integers(MIB - 2 * KIB, MIB + 2 * KIB),
    st.sampled_from([2048, 600 * KIB, 3 * MIB, 8 * MIB, 10 * MIB - 1, 10 * MIB, 16 * MIB, 33 * MIB]),
    st.integers(1, 40 * MIB),
)


@needs_compiler
@settings(max_examples=600)
@given(st.data())
def test_random_runs_end_as_in_python(library: Library, data: st.DataObject):
    """Peaks, flushes, the place of a failure and every block that was held there, on endless cards and on full ones."""
    sizes: list[int] = []
    events: list[int] = []
    alive: list[int] = []
    for size, dies in data.draw(st.lists(st.tuples(SIZES, st.lists(st.integers(0, 30), max_size=3)), max_size=60)):
        alive.append(len(sizes))
        events.append(len(sizes))
        sizes.append(size)
        events += [~alive.pop(i) for i in dies if i < len(alive)]
    flushes = sorted(data.draw(st.sets(st.integers(0, max(len(events) - 1, 0)), max_size=3))) if events else []
    given = AllocatorSettings(
        large_segment_size=data.draw(st.sampled_from([20, 32])) * MIB,
        expandable_segments=data.draw(st.booleans()),
        per_process_memory_fraction=data.draw(st.sampled_from([1.0, 1.0, 0.9])),
    )
    endless = _run(Program([Part(events)], flushes), sizes, CachingAllocator(None, given))
    spare = endless.reserved_bytes - endless.allocated_bytes
    capacity = data.draw(st.none() | st.integers(-10, 110).map(lambda share: max(endless.allocated_bytes + spare * share // 100, 0)))
    ours, plain = both(library, Program([Part(events)], flushes), sizes, capacity, given)

    assert ours == plain


@needs_compiler
@pytest.mark.parametrize("knobs", RECIPES, ids=lambda k: "-".join(map(str, k.values())))
@pytest.mark.parametrize("model", MODELS)
def test_runs_of_models_end_as_in_python(library: Library, model: str, knobs: dict[str, Any]):
    """Families and recipes, in every order of loading: where there is room, where it is short, and where it is not enough."""
    found = find_checkpoint(model)
    spec, stack = build_spec(found.config, id=found.id), stacks.parse_stack("latest")
    recipe = stacks.resolve(make_recipe(**knobs), stack, spec.dtype)
    whole = unroll_events(analyse(spec, recipe, stack)._write(next(AHEAD)))
    for told in (AllocatorSettings(), AllocatorSettings(expandable_segments=True)):
        endless = both(library, whole.program, whole.sizes, None, told)
        assert endless[0] == endless[1]
        for share in (40, 92, 99.5):
            ours, theirs = both(library, whole.program, whole.sizes, int(endless[0].reserved_bytes * share / 100), told)
            assert ours == theirs


@needs_compiler
@pytest.mark.parametrize("events", [[~0], [0, 0], [0, ~0, ~0], [1]], ids=["dies unborn", "born twice", "dies twice", "unknown"])
def test_events_that_make_no_sense_are_left_to_python(library: Library, events: list[int]):
    """C says nothing about them; Python's error names the storage."""
    assert library.replay(Program([Part(events)]).packed, (), array("q", [100]), Limits(), 20 * MIB) is None


@needs_compiler
def test_it_is_compiled_once_that_is_worth_it(fresh: Path):
    """Small runs never ask for it; large ones do once Python has spent as long; then it is kept for other processes."""
    assert native.library(native.WORTH - 1) is None
    assert native.library(native.PATIENCE) is None
    assert not place().exists()
    found = native.library(native.PATIENCE)
    assert found is not None
    assert place().is_relative_to(fresh)
    native._State.library = None
    native._State.num_events = 0
    assert native.library(native.WORTH) is not None


@needs_compiler
def test_a_library_that_others_may_write_is_not_loaded(fresh: Path):
    """Anybody could have put anything there."""
    compile_to(place())
    place().chmod(0o777)

    assert native.library(native.WORTH) is None


@needs_compiler
def test_an_open_umask_does_not_matter(fresh: Path):
    """Where new files are the group's to write, the library is not, and is found again."""
    before = os.umask(0o002)
    try:
        compile_to(place())
    finally:
        os.umask(before)

    assert native.library(native.WORTH) is not None


def test_a_user_without_a_home_has_no_cache(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    """Python goes on there too."""
    monkeypatch.delenv("XDG_CACHE_HOME")

    def expanduser(path: Path) -> Path:
        raise RuntimeError(f"could not determine the home of {path}")

    monkeypatch.setattr(Path, "expanduser", expanduser)

    assert native.library(10 * native.PATIENCE) is None


def test_it_can_be_switched_off(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    """With QPLAN_COMPILE=0 nothing is compiled or loaded."""
    monkeypatch.setenv(native.VARIABLE, "0")

    assert native.library(10 * native.PATIENCE) is None
    assert list(fresh.iterdir()) == []


def test_without_a_compiler_python_goes_on(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    """It is looked for once; the answer is None from then on."""
    monkeypatch.setattr(shutil, "which", lambda name: None)

    assert native.library(10 * native.PATIENCE) is None
    assert native._State.is_hopeless
    with pytest.raises(OSError, match="no C compiler"):
        compile_to(fresh / "replay.so")


def test_a_compiler_that_fails_leaves_nothing(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    """Its error is one of the system's, and no half-written library stays."""
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")

    def call(command: list[str], **options: Any) -> None:
        Path(command[command.index("-o") + 1]).write_bytes(b"half")
        raise subprocess.CalledProcessError(1, command)

    with pytest.raises(OSError, match="does not compile"):
        compile_to(fresh / "replay.so", call)
    assert list(fresh.iterdir()) == []


@needs_compiler
def test_a_broken_library_is_given_up(fresh: Path):
    """What cannot be loaded is not tried again."""
    place().parent.mkdir()
    place().write_bytes(b"no library")
    place().chmod(0o600)

    assert native.library(native.WORTH) is None
    assert native._State.is_hopeless


@needs_compiler
def test_the_source_compiles_without_a_warning(tmp_path: Path):
    """Strictly."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    flags = ("-Wall", "-Wextra", "-Wconversion", "-Wno-sign-conversion", "-Werror", "-pedantic")
    command = [compiler, *native.FLAGS, *flags, "-o", str(tmp_path / "a.so"), str(native.SOURCE)]
    done = subprocess.run(command, capture_output=True, check=False)

    assert done.stderr.decode() == ""
    assert done.returncode == 0
