"""What `qplan doctor` finds, on machines that a stand-in for NVML plays."""

from __future__ import annotations

import json

import jsonschema
import pytest

from planner import doctor, stack
from planner.doctor import diagnose
from planner.formulas import runtime
from planner.render import doctor as screen
from planner.render.terminal import Terminal
from planner.stack import LATEST, PACKAGES
from planner.units import GIB, MIB
from tests.nvml_stand_in import A100, A100_TOTAL, LOST, MISMATCH, NOT_LOADED, NOT_SUPPORTED, T4, UNKNOWN, card, part


@pytest.fixture(autouse=True)
def _newest_stack(monkeypatch):
    monkeypatch.setattr(stack, "_installed", lambda: dict(LATEST.versions))


def test_what_a_plan_can_use_is_what_others_and_a_context_leave(machine):
    """Total less what the driver keeps, less what is used, less the published context of that compute capability."""
    machine(card(memory=f"{A100_TOTAL} {430 * MIB} {7 * GIB}"))
    (found,) = diagnose({}).visible.devices
    context = runtime.cuda_context((8, 0)).nbytes

    assert (found.total_bytes, found.used_bytes, found.context_bytes) == (A100_TOTAL - 430 * MIB, 7 * GIB, context)
    assert found.usable_bytes == A100_TOTAL - 430 * MIB - 7 * GIB - context
    assert (found.memory, found.bf16) == ("own", "native")


def test_bf16_is_emulated_before_ampere(machine):
    """Compute capability 7.5 has none; one that is not told is not known."""
    machine(card(0, T4), card(1, capability=NOT_SUPPORTED))

    assert [device.bf16 for device in diagnose({}).visible.devices] == ["emulated", None]


def test_numbers_of_cuda_follow_the_variable(machine):
    """The second card first; the third is hidden, and why."""
    machine(card(0, T4), card(1, T4), card(2, T4))
    found = diagnose({"CUDA_VISIBLE_DEVICES": "1,0,9,2"}).visible

    assert [(device.ordinal, device.card) for device in found.devices] == [(0, 1), (1, 0)]
    assert "`9` names no card here" in found.reason


def test_a_mig_instance_is_planned_with_its_own_memory(machine):
    """Not with its card's."""
    machine(card(mig="1 1", parts="7"), part(0, 3, f"{A100} MIG 2g.20gb", f"{20 * GIB} 0 {GIB}", 3))
    (found,) = diagnose({}).visible.devices

    assert (found.card, found.instance, found.total_bytes) == (0, 3, 20 * GIB)
    assert found.usable_bytes == 19 * GIB - runtime.cuda_context((8, 0)).nbytes


@pytest.mark.parametrize(
    ("answers", "says"),
    {
        (("init", NOT_LOADED),): "its kernel module is not loaded",
        (("init", MISMATCH),): "differ in version",
        (("init", "error 999"),): "Unknown Error",
    }.items(),
)
def test_without_a_driver_the_rest_is_found(machine, answers, says):
    """The sentence, what to do, and that every plan still works; stack and allocator as ever."""
    machine(card(), **dict(answers))
    found = diagnose({})

    assert says in found.driver.problem
    assert found.driver.hint
    assert (found.cards, found.visible.devices, found.visible.reason) == ((), (), "")
    assert found.notes == (doctor._STILL,)
    assert [package.name for package in found.packages] == list(PACKAGES)


def test_a_card_that_vanished_is_not_planned_for(machine):
    """It is told, and the other is."""
    machine(card(0, T4, processes=LOST), card(1, T4))
    found = diagnose({})

    assert [device.usable_bytes is None for device in found.visible.devices] == [True, False]
    assert any("Card 0 went away" in note for note in found.notes)


def test_a_driver_without_a_card_is_told(machine):
    """None is there, or their number is not told: NVML's reason then."""
    machine()
    none = notes()
    machine(card(), count=UNKNOWN)

    assert "The driver runs, but finds no card: in a container" in none
    assert "finds no card (Unknown Error)" in notes()


@pytest.mark.parametrize("code", [1, 3, 4, 6, 7, 13, 15, 999])
def test_every_question_may_be_refused(machine, code):
    """Whichever it is, with whichever error, on a card and on an instance: the rest is found, and can be shown."""
    split = card(0, mig="1 1", ecc="1 1", model="2 2", parts="2", processes=f"1:{GIB}:0")
    whole = [split, part(0, 0, "MIG 1g", f"{GIB} 0 0", 0), card(1, T4)]
    keys = [key for answers in whole for key in answers]
    for key in [*keys, "driver", "cuda", "count", "pid.1"]:
        machine(*whole, **{key: f"error {code}"})
        found = diagnose({})

        assert screen.lines(found, Terminal())
        assert json.loads(screen.as_json(found)) == found.model_dump()


def notes(**environment: str) -> str:
    """The notes of the machine as it is."""
    return "\n".join(diagnose(environment).notes)


def test_unified_memory_is_said_to_be_different(machine, monkeypatch, tmp_path):
    """Its size is the host's; offloading saves nothing."""
    (tmp_path / "meminfo").write_text("MemTotal: 127600748 kB\nMemAvailable: 118566368 kB\n")
    monkeypatch.setattr("planner.hardware._HOST_MEMORY", tmp_path / "meminfo")
    machine(card(name="NVIDIA GB10", memory=NOT_SUPPORTED, capability="12 1"))
    found = diagnose({})

    assert (found.visible.devices[0].memory, found.visible.devices[0].total_bytes) == ("shared", 127600748 << 10)
    assert "offloading save nothing" in found.notes[0]


def test_wsl_and_wddm_are_said_to_be_different(machine, monkeypatch, tmp_path):
    """Windows manages the memory: a run that is too large may crawl instead of failing."""
    machine(card(model="0 0", processes="9:-:-"))
    under_windows = notes()
    (tmp_path / "dxg").touch()

    assert under_windows.startswith("WDDM: ")
    assert "crawl instead of failing" in under_windows
    assert notes().startswith("WSL: ")
    assert diagnose({}).driver.platform == "wsl"


def test_what_changes_at_the_next_reset_is_told(machine):
    """MIG and ECC that are asked for."""
    machine(card(mig="0 1", ecc="1 0"))

    assert "Card 0: MIG turns on at its next reset" in notes()
    assert "Card 0: ECC turns off at its next reset" in notes()


def test_cards_that_differ_may_be_numbered_otherwise(machine):
    """Unless the order is that of the buses, or they are alike."""
    machine(card(0, T4), card(1))
    differing, by_bus = notes(), notes(CUDA_DEVICE_ORDER="PCI_BUS_ID")
    machine(card(0), card(1))

    assert "CUDA may number them by speed" in differing
    assert by_bus == notes() == ""


@pytest.mark.parametrize(
    ("torch", "cuda", "says"),
    [
        ("2.13.0+cpu", "13000", "built without CUDA"),
        ("2.13.0+cu130", "12080", "built for CUDA 13; this driver runs CUDA 12"),
        ("2.13.0+cu128", "12040", ""),
        ("2.13.0", "11040", ""),
    ],
)
def test_a_build_of_torch_that_cannot_use_the_card_is_told(machine, monkeypatch, torch, cuda, says):
    """The label of its version against the driver's CUDA; minor versions go together."""
    monkeypatch.setattr(stack, "_installed", lambda: {**LATEST.versions, "torch": torch})
    machine(card(), cuda=cuda)

    assert says in notes() if says else notes() == ""


def test_versions_are_told_with_what_they_mean(monkeypatch):
    """The newest, an old stack, and one that is not complete: plans take the newest profile then."""
    newest = {package.name: package.means for package in doctor._packages()}
    older = {"torch": "2.6.0", "transformers": "4.44.0", "peft": "0.12.0", "trl": "0.11.0", "bitsandbytes": "0.46.0", "accelerate": "1.0.0"}
    monkeypatch.setattr(stack, "_installed", lambda: older)
    old = {package.name: package.means for package in doctor._packages()}
    monkeypatch.setattr(stack, "_installed", lambda: {"torch": "2.6.0"})
    torch, transformers, *_ = doctor._packages()

    assert newest["trl"] == "loss is chunked; adapters over a quantised base are bf16"
    assert old["trl"] == "loss is full; adapters over a quantised base are fp32"
    assert newest["transformers"].startswith("checkpointing is not reentrant; loading first asks for the whole checkpoint")
    assert old["transformers"].startswith("checkpointing is reentrant; loading asks for a tensor at a time")
    assert (old["peft"], old["torch"]) == ("kbit-prepare leaves norms in fp32", "AdamW is adamw_torch where no optimizer is named")
    assert (torch.version, torch.planned_version, transformers.version) == ("2.6.0", LATEST.versions["torch"], None)
    assert "without transformers, accelerate, peft, bitsandbytes, trl" in doctor._traced()


def test_the_allocators_settings_are_read_as_pytorch_reads_them():
    """The first variable that is set, what it changes, and what PyTorch would refuse."""
    text = "expandable_segments:True,max_split_size_mb:128"
    found = doctor._allocator({"PYTORCH_CUDA_ALLOC_CONF": text, "PYTORCH_ALLOC_CONF": "nonsense"})
    refused = doctor._allocator({"PYTORCH_ALLOC_CONF": "nonsense"})

    assert (found.variable, found.text, found.problem) == ("PYTORCH_CUDA_ALLOC_CONF", text, None)
    assert found.settings == {"expandable_segments": True, "max_split_size_bytes": 128 * MIB}
    assert doctor._allocator({}) == doctor.Allocator(None, "", {}, None)
    assert "`nonsense`" in refused.problem


CONTRACT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["schema_version", "driver", "cards", "visible", "packages", "stack_source", "traced", "allocator", "host", "notes"],
    "properties": {
        "schema_version": {"const": 1},
        "driver": {"type": "object", "required": ["version", "cuda", "problem", "hint", "platform"]},
        "cards": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    "index", "uuid", "name", "memory", "compute_capability", "mig", "mig_pending", "instances", "ecc", "ecc_pending",
                    "driver_model", "processes", "unanswered", "is_lost",
                ],
            },
        },
        "visible": {"type": "object", "required": ["variable", "order", "devices", "reason"]},
        "packages": {"type": "array", "items": {"type": "object", "required": ["name", "version", "planned_version", "means"]}},
        "stack_source": {"type": "string"},
        "traced": {"type": "string"},
        "allocator": {"type": "object", "required": ["variable", "text", "settings", "problem"]},
        "host": {"type": ["object", "null"]},
        "notes": {"type": "array", "items": {"type": "string"}},
    },
}  # fmt: skip


def test_the_dump_is_the_contract(machine):
    """Plain JSON; every size is an integer under a key that ends in `_bytes`."""
    machine(card(mig="1 1", parts="7", processes=f"1:{GIB}:0"), part(0, 0, "MIG 1g", f"{10 * GIB} 0 0", 0), card(1, T4))
    dumped = diagnose({}).model_dump()
    found = json.loads(json.dumps(dumped))

    jsonschema.validate(found, CONTRACT)

    assert found == dumped
    assert found["cards"][0]["instances"][0]["memory"] == {
        "total_bytes": 10 * GIB, "used_bytes": 0, "free_bytes": 10 * GIB, "reserved_bytes": 0,
    }  # fmt: skip
    assert found["cards"][0]["processes"][0]["used_bytes"] == GIB
