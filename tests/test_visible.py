"""What CUDA_VISIBLE_DEVICES leaves: held against torch's own reading of it, and against NVIDIA's rules for MIG."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.hardware import Card, Instance
from planner.visible import visible

CARDS = [Card(0, "GPU-aa11"), Card(1, "GPU-ab22"), Card(2, "GPU-c333")]
PARTS = tuple(Instance(n, f"MIG-{n}{n}-ef", f"part {n}", None, n + 1, 0) for n in range(2))
SPLIT = Card(1, "GPU-ab22", mig=True, instances=PARTS)


def ordinals(setting: str | None, cards: list[Card] = CARDS) -> list[int]:
    """The numbers of the cards that are seen, in CUDA's order."""
    return [seen.card.index for seen in visible(setting, cards).devices]


@pytest.fixture(scope="module")
def cuda() -> Any:
    """Torch's way to its cards."""
    return pytest.importorskip("torch").cuda


def torchs(cuda: Any, setting: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The same, as torch counts them."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    read = cuda._parse_visible_devices()
    if read and isinstance(read[0], str):
        return cuda._transform_uuid_to_ordinals(read, [card.uuid for card in CARDS])
    return read[: next((n for n, index in enumerate(read) if index >= len(CARDS)), len(read))]


INDICES = st.lists(st.sampled_from(["0", "1", "2", "3", "-1", " 1", "2x", "+1", "", "x", "01"]), min_size=1, max_size=4)
UUIDS = st.lists(st.sampled_from(["GPU-aa", "GPU-a", "GPU-ab22", "GPU-c", "GPU-", "0", " GPU-c", "GPU-c333", ""]), max_size=4)


@given(st.one_of(INDICES, UUIDS.map(lambda rest: ["GPU-c3", *rest])))
def test_settings_are_read_as_torch_reads_them(cuda, entries):
    """Indices with what follows them, wrong and repeated ones, beginnings of UUIDs, ambiguous ones."""
    setting = ",".join(entries)
    with pytest.MonkeyPatch.context() as monkeypatch:
        expected = torchs(cuda, setting, monkeypatch)

    assert ordinals(setting) == expected


def test_nothing_is_hidden_without_a_setting():
    """Every card, in NVML's order, and no reason is given."""
    assert ordinals(None) == [0, 1, 2]
    assert visible(None, CARDS).reason == ""


@pytest.mark.parametrize(
    ("setting", "says"),
    {
        "": "CUDA_VISIBLE_DEVICES is empty",
        "1,1": "twice",
        "GPU-aa,GPU-aa11": "twice",
        "0,9,1": "`9` names no card here",
        "-1": "`-1` names no card here",
        "GPU-a": "`GPU-a` names no card here",
        "MIG-x": "`MIG-x` names no card here",
        "99999999999999999999": "names no card here",
    }.items(),
)
def test_what_hides_a_card_is_said(setting, says):
    """In words, with the entry."""
    assert says in visible(setting, CARDS).reason


@pytest.mark.parametrize(
    ("setting", "part"),
    {None: 0, "0,1,2": 0, "1": 0, "GPU-ab22": 0, "MIG-11": 1, "MIG-11-ef,MIG-00-ef": 1, "MIG-GPU-ab22/2/0": 1}.items(),
)
def test_one_mig_instance_is_seen_and_nothing_beside_it(setting, part):
    """NVIDIA's MIG guide: CUDA enumerates a single compute instance, and then no whole card."""
    found = visible(setting, [CARDS[0], SPLIT, CARDS[2]])
    hides = setting is None or setting in ("0,1,2", "1", "GPU-ab22", "MIG-11-ef,MIG-00-ef")

    assert [(seen.ordinal, seen.card.index, seen.instance) for seen in found.devices] == [(0, 1, PARTS[part])]
    assert found.reason == ("a process sees one MIG instance, and no whole card beside it" if hides else "")


@pytest.mark.parametrize("setting", ["MIG-", "MIG-2", "MIG-GPU-ab22/9/0", "MIG-GPU-aa11/1/0"])
def test_a_wrong_name_of_an_instance_is_nothing(setting):
    """No such UUID, an ambiguous beginning, wrong numbers, a card without instances."""
    alone = Card(1, "GPU-ab22", mig=True, instances=PARTS[:1])

    assert visible(setting, [CARDS[0], SPLIT]).devices == ()
    assert visible(setting, [CARDS[0], alone]).devices == ()


def test_a_card_in_mig_mode_without_instances_is_not_seen():
    """The others are, with numbers of their own."""
    found = visible(None, [Card(0, "GPU-aa11", mig=True), CARDS[1]])

    assert [(seen.ordinal, seen.card.index) for seen in found.devices] == [(0, 1)]
    assert "without instances" in found.reason


@given(st.text())
def test_any_text_is_read(setting):
    """Nothing but a visibility ever comes out."""
    assert len(visible(setting, CARDS).devices) <= len(CARDS)
