"""A watch on a card: torch's counters as scripted, NVML through the real pynvml over the stand-in."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from planner import catalog, estimate, own_values  # noqa: E402 - may be missing
from planner.hf.watching import Watch  # noqa: E402 - the same
from planner.stack import LATEST  # noqa: E402 - the same
from planner.units import GIB, MIB  # noqa: E402 - the same
from tests.nvml_stand_in import A100, A100_TOTAL, NOT_LOADED, card  # noqa: E402 - the same

UUID = "0a1b2c3d-0000-1111-2222-333344445555"


class OnCard(torch.nn.Module):
    """A model that says that it is on cuda:0."""

    def parameters(self, recurse=True):
        return iter([SimpleNamespace(device=torch.device("cuda", 0))])


@pytest.fixture
def cuda(monkeypatch, tmp_path):
    """A card of which torch's counters are set by hand."""
    monkeypatch.setenv("QPLAN_HOME", str(tmp_path / "home"))
    counters = {"max_memory_allocated": 3 * GIB, "max_memory_reserved": 3 * GIB + 300 * MIB, "memory_reserved": 3 * GIB + 300 * MIB}
    for name in tuple(counters):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name: counters[name])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=UUID))
    return counters


def holding(ours: int, theirs: int) -> dict[str, str]:
    """The card with this process and another on it."""
    return card(memory=f"{A100_TOTAL} {430 * MIB} {ours + theirs}", processes=f"{os.getpid()}:{ours}:- 7:{theirs}:-")


def run(watch: Watch) -> None:
    """The phases of one step."""
    watch.start()
    for phase in ("forward", "backward", "optimizer_step", None):
        watch.enter(phase)
    watch.stop()
    watch.stop()


def test_what_this_process_holds_is_not_held_by_others(cuda, machine):
    """The model is loaded already: of the 14 GiB in use, 10 are ours and 4 are not for us."""
    machine(holding(10 * GIB, 4 * GIB))
    watch = Watch(OnCard())

    assert (watch.device.name, watch.device.used_bytes, watch.driver) == (A100, 4 * GIB, "580.95.05")
    watch._sampler.stop()


def test_every_level_is_compared(cuda, machine):
    """Allocated and reserved as torch counts, the process as the driver does; what the plan says stands beside each."""
    machine(holding(4 * GIB, 0))
    watch = Watch(OnCard())
    run(watch)
    report = estimate("Qwen/Qwen2.5-0.5B", gpu=A100)
    levels = watch.levels(report)

    assert {name: level.measured_bytes for name, level in levels.items()} == {
        "allocated": 3 * GIB,
        "reserved": 3 * GIB + 300 * MIB,
        "process": 4 * GIB,
    }
    assert [row.phase for row in watch.rows(report)][:3] == ["load", "forward", "backward"]
    assert levels["process"].predicted_bytes == report.peak.process_bytes
    assert watch.process == {"context_bytes": GIB - 300 * MIB, "workspace_bytes": None, "reserve_bytes": 300 * MIB}


def test_the_cards_own_values_are_kept(cuda, machine):
    """Context: what the driver sees beyond reserved; reserve: 300 MiB of 3 GiB are 98 thousandths, rounded up; used from then on."""
    machine(holding(4 * GIB, 0))
    watch = Watch(OnCard())
    run(watch)
    watch.remember(LATEST)
    own = catalog.find_device(A100).own

    assert (own.context_bytes, own.workspace_bytes, own.reserve_per_mille) == (GIB - 300 * MIB, None, 98)
    assert own.measured.endswith("torch 2.13.0, driver 580.95.05")


def test_paged_states_are_not_taken_for_a_context(cuda, machine):
    """CUDA managed memory is in the process and not in torch's reserved: nothing is kept then."""
    machine(holding(4 * GIB, 0))
    watch = Watch(OnCard())
    run(watch)
    watch.remember(LATEST, is_paged=True)

    assert catalog.find_device(A100).own is None


def test_without_nvml_torchs_counters_remain(cuda, machine):
    """No driver's library: what cannot be measured is said, the rest is."""
    machine(card(), init=NOT_LOADED)
    watch = Watch(OnCard())
    run(watch)
    watch.remember(LATEST)

    assert watch.device is None
    assert "NVML cannot be asked" in watch.notes[0]
    assert watch.peaks["forward"] == 3 * GIB
    assert watch.process["context_bytes"] is None
    assert own_values.recall(catalog.find_device(A100)) is None


def test_a_card_that_nvml_does_not_know_is_said(cuda, machine):
    """Torch's UUID is no card's: nothing is taken for it."""
    machine(card(uuid="GPU-ffffffff-0000"))
    watch = Watch(OnCard())

    assert (watch.device, watch._sampler) == (None, None)
    assert "NVML does not know the card" in watch.notes[0]
