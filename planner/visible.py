"""Which cards a CUDA program sees, and as which numbers: CUDA_VISIBLE_DEVICES against what NVML finds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

from planner.hardware import Card, Instance
from planner.value import Value

VARIABLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"

# The number that an entry starts with, as C's strtoul would read it.
_NUMBER = re.compile(r"[+-]?\d{1,9}", re.ASCII)
# How drivers before 470 call a MIG instance.
_OLD_MIG = re.compile(r"MIG-(?P<uuid>GPU-[0-9a-f-]+)/(?P<gpu>\d{1,3})/(?P<compute>\d{1,3})", re.ASCII)


class Seen(Value):
    """
    One device of CUDA.

    Attributes:
        ordinal: Its number in CUDA programs: the n of `cuda:n`.
        card: The card, or the one that the instance is a part of.
        instance: The MIG instance, if it is one.
    """

    ordinal: int
    card: Card
    instance: Instance | None = None


class Visibility(Value):
    """
    What CUDA programs see.

    Attributes:
        devices: In CUDA's order.
        reason: Why there are not more of them, in words; empty where all are seen.
    """

    devices: tuple[Seen, ...]
    reason: str = ""


def visible(setting: str | None, cards: Sequence[Card]) -> Visibility:
    """
    The devices that a CUDA program started under a setting sees.

    Args:
        setting: CUDA_VISIBLE_DEVICES; None where it is not set.
        cards: What NVML finds, in its order. CUDA's order is the same where CUDA_DEVICE_ORDER is PCI_BUS_ID, or all cards are alike.

    Source:
        torch@2.13.0, cuda/__init__.py, `_parse_visible_devices` and `_transform_uuid_to_ordinals`: indices as strtoul reads them, or
        beginnings of UUIDs; what follows a wrong entry is not seen, and nothing is where one stands twice. NVIDIA's MIG user guide,
        "CUDA device enumeration": one compute instance a process, and no whole card beside it.
    """
    if setting is None:
        return _one_instance([Seen(n, card) for n, card in enumerate(cards)])
    if not setting.strip():
        return Visibility((), f"{VARIABLE} is empty: every card is hidden")
    names, wrong = _read(setting)
    found: list[Seen] = []
    for name in names:
        match = _find(name, cards)
        if match is None:
            wrong = str(name)
            break
        card, instance = match
        found.append(Seen(len(found), card, instance))
    if len(set(names)) < len(names) or len({(seen.card.index, seen.instance) for seen in found}) < len(found):
        return Visibility((), "one card stands there twice: that hides every card")
    return _one_instance(found, "" if wrong is None else f"`{wrong}` names no card here: it hides itself and what stands behind it")


def _read(setting: str) -> tuple[list[int] | list[str], str | None]:
    """The entries up to the first that cannot be read, and that one; all must be of the first one's kind."""
    entries = setting.split(",")
    kind = next((prefix for prefix in ("GPU-", "MIG-") if setting.startswith(prefix)), "")
    if kind:
        texts = list(takewhile(lambda entry: entry.startswith(kind), entries))
        return texts, entries[len(texts)].strip() if len(texts) < len(entries) else None
    numbers: list[int] = []
    for entry in entries:
        match = _NUMBER.match(entry.strip())
        if match is None or int(match[0]) < 0:
            return numbers, entry.strip()
        numbers.append(int(match[0]))
    return numbers, None


def _find(name: int | str, cards: Sequence[Card]) -> tuple[Card, Instance | None] | None:
    """What one entry names; None where that is nothing, or several."""
    if isinstance(name, int):
        return (cards[name], None) if name < len(cards) else None
    if name.startswith("MIG-"):
        parts = [(card, part) for card in cards for part in card.instances if _is_named(name, card, part)]
        return parts[0] if len(parts) == 1 else None
    begun = [card for card in cards if (card.uuid or "").startswith(name)]
    return (begun[0], None) if len(begun) == 1 else None


def _is_named(entry: str, card: Card, part: Instance) -> bool:
    """Whether an entry means that instance: by its UUID or its beginning, or by the card's and two numbers."""
    old = _OLD_MIG.fullmatch(entry)
    if old is not None:
        return (old["uuid"], int(old["gpu"]), int(old["compute"])) == (card.uuid, part.gpu_instance, part.compute_instance)
    return len(entry) > len("MIG-") and (part.uuid or "").startswith(entry)


def _one_instance(found: list[Seen], reason: str = "") -> Visibility:
    """MIG's limit: the first instance alone is seen where there is one; a card in MIG mode without instances is not."""
    parts = [seen for seen in found if seen.instance is not None or seen.card.mig]
    if not parts:
        return Visibility(tuple(found), reason)
    instances = [(seen.card, part) for seen in parts for part in ((seen.instance,) if seen.instance else seen.card.instances)]
    if not instances:
        whole = [seen.card for seen in found if not seen.card.mig]
        reason = reason or "a card in MIG mode without instances is no device of CUDA"
        return Visibility(tuple(Seen(n, card) for n, card in enumerate(whole)), reason)
    if len(instances) > 1 or len(found) > len(parts):
        reason = reason or "a process sees one MIG instance, and no whole card beside it"
    card, part = instances[0]
    return Visibility((Seen(0, card, part),), reason)
