"""Find a GPU: in the catalogue by a loose name, by its size, or in this machine."""

from __future__ import annotations

import os
import re
from functools import cache
from typing import TYPE_CHECKING, Any

import model_specs
from planner import driver, home
from planner.config_file import printable
from planner.device import Device
from planner.errors import UnavailableError, UnknownDeviceError
from planner.units import GIB, KIB, MIB, human

if TYPE_CHECKING:
    from planner.visible import Seen

# The cards that an estimate without a card is answered for: what people rent and own, from 16 to 180 GB, one a size.
COMMON = (
    "Tesla T4",
    "NVIDIA GeForce RTX 4090",
    "NVIDIA A100-SXM4-40GB",
    "NVIDIA RTX A6000",
    "NVIDIA A100-SXM4-80GB",
    "NVIDIA H100 80GB HBM3",
    "NVIDIA H200",
    "NVIDIA B200",
)
# Drivers report one and the same card up to this many thousandths apart (T4: 14930 to 15109 MiB is 12), so a size this close to a
# reported one is taken for that card.
_SAME_CARD_PER_MILLE = 15
# Compute capability 8.0 is the first with bf16 and flash attention: what a card of unknown make most likely has at least.
_ASSUMED_CAPABILITY = (8, 0)
_MAKERS = frozenset({"nvidia", "amd", "geforce", "tesla", "instinct", "gpu", "graphics"})
_SIZE = re.compile(r"(?P<number>\d{1,15}(?:\.\d{1,9})?)\s*(?P<unit>[mg]i?b?|tib|b|bytes)", re.IGNORECASE)
# torch prints MiB as `MB` (`total_memory=15102MB`), and that is what people copy. GB is not here: it is the name of a card's
# size, not a size.
_UNITS = {"b": 1, "bytes": 1, "m": MIB, "mb": MIB, "mi": MIB, "mib": MIB, "gi": GIB, "gib": GIB, "tib": KIB * GIB}
_SMALLEST, _LARGEST = 64 * MIB, 16 * KIB * GIB
OWN_VALUES = "cards"
"""The folder of the user's data in which `planner.own_values` keeps what was measured on cards."""
_WAY_OUT = "run `qplan gpus` for the list, or give a size such as 80GiB"


def list_devices() -> list[Device]:
    """
    The cards of the catalogue whose memory is known, in its order: data centre, consumer, laptop, AMD.

    `total_bytes` is what CUDA reports, where it is known: the usual figure, or else the smallest that was seen. Otherwise it
    is what nvidia-smi prints, and `note` says so.
    """
    devices = [_device(card) for card in model_specs.gpus() if _total(card) is not None]
    return [_known(device) for device in devices] if home.has(OWN_VALUES) else devices


def common_devices() -> list[Device]:
    """The cards that an estimate without a card is answered for, from the smallest to the largest (see `COMMON`)."""
    devices = {device.name: device for device in list_devices()}
    return sorted((devices[name] for name in COMMON), key=lambda device: device.total_bytes)


def find_device(text: str) -> Device:
    """
    The card that a text means.

    Names are compared without case, blanks, dashes and makers: `t4`, `a6000`, `A100-80GB`, `rtx 4090`, `Tesla T4`. `a100`
    and `v100` alone mean the smaller of the two sizes. A size is taken as follows:

    - `80GiB`, `14912MiB`, `85174583296B`: exactly that much. `MB` is read as MiB, as torch prints it.
    - `24GB`, `24G`: a card sold as 24 GB, whose memory is less. Taken is the smallest in the catalogue; where the catalogue has
      none of that size, decimal gigabytes.

    What a size does not say, the catalogued card does whose reported total is nearest, if it is within 1.5 %; otherwise
    compute capability 8.0 is assumed. `Device.note` says what was taken.

    Raises:
        UnknownDeviceError: It is no card of the catalogue and no size, or it could be several cards.
    """
    wanted = text.strip()
    card = _by_name(wanted)
    if card is not None:
        if _total(card) is None:
            raise UnknownDeviceError(
                f"how much memory `{card['name']}` gives to CUDA is not known here",
                hint="give the size that torch reports for it, such as 60GiB",
            )
        device = _device(card, _sibling_note(wanted, card))
        return _known(device) if home.has(OWN_VALUES) else device
    size = _SIZE.fullmatch(wanted)
    if size is not None:
        return _by_size(size["number"], size["unit"].lower(), wanted)
    nearest = _nearest(wanted)
    hint = f"did you mean {', '.join(nearest)}? {_WAY_OUT}" if nearest else _WAY_OUT
    raise UnknownDeviceError(f"`{printable(wanted)}` is no card of the catalogue and no size", hint=hint)


def local_device() -> Device | None:
    """
    The first NVIDIA GPU that CUDA programs in this machine would see, or None: quickly, and without a CUDA context.

    CUDA_VISIBLE_DEVICES is respected: indices (in PCI bus order), UUIDs, MIG instances (`planner.visible`). `total_bytes` is what
    this driver gives to processes, `used_bytes` what all of them hold now.
    """
    if not driver.may_be_there():
        return None
    from planner import nvml
    from planner.visible import VARIABLE, visible

    try:
        found = nvml.read(thorough=False)
    except UnavailableError:
        return None
    devices = visible(os.environ.get(VARIABLE), found.cards).devices
    return device_of(devices[0]) if devices else None


def device_of(seen: Seen) -> Device | None:
    """What CUDA sees as a card to plan for; None where its memory or its compute capability is not known."""
    card, memory = seen.card, (seen.instance or seen.card).memory
    note = "this machine's card: what NVML reports, without the {} that the driver keeps"
    if memory is None and card.is_unified:
        from planner.hardware import host_memory

        memory, note = host_memory(), "this machine's memory, which the card shares: MemTotal and MemAvailable of Linux"
    if memory is None or card.compute_capability is None or card.is_lost:
        return None
    device = Device(
        name=(seen.instance or card).name or f"card {card.index}",
        total_bytes=memory.total_bytes,
        compute_capability=card.compute_capability,
        bf16=card.compute_capability[0] >= 8,
        used_bytes=memory.used_bytes,
        note=note.format(human(memory.reserved_bytes)),
    )
    return _known(device) if home.has(OWN_VALUES) else device


def _known(device: Device) -> Device:
    """The card with what was measured on one of its kind here; loaded where there is such a thing."""
    from planner import own_values

    return own_values.applied(device)


def _device(card: dict[str, Any], note: str = "") -> Device:
    """An entry of the catalogue as a device."""
    major, minor = card["compute_capability"]
    return Device(
        name=card["name"],
        total_bytes=_total(card) or 0,
        compute_capability=(major, minor),
        bf16=card["bf16"],
        note="; ".join(part for part in (note, _total_note(card)) if part),
    )


def _cuda_total(card: dict[str, Any]) -> int | None:
    """What CUDA reports: the usual figure, or else the smallest that was seen."""
    if card["cuda_bytes"] is not None:
        return int(card["cuda_bytes"])
    return min((int(seen["bytes"]) for seen in card["cuda_bytes_seen"]), default=None)


def _total(card: dict[str, Any]) -> int | None:
    """The memory that a card is taken to have, or None where nothing is known."""
    cuda = _cuda_total(card)
    if cuda is not None or card["nvidia_smi_mib"] is None:
        return cuda
    return int(card["nvidia_smi_mib"]) * MIB


def _total_note(card: dict[str, Any]) -> str:
    """Where `_total` comes from, in words."""
    if card["cuda_bytes"] is not None:
        return "total as CUDA reports it"
    if card["cuda_bytes_seen"]:
        lowest = min(card["cuda_bytes_seen"], key=lambda seen: seen["bytes"])["printed"]
        return f"total: the smallest that CUDA was seen to report ({lowest})"
    return "total as nvidia-smi prints it; where both are known, CUDA sees 0.4 to 2.8 % less under Linux"


def _key(text: str) -> str:
    """A name without case, blanks, dashes and makers."""
    return "".join(word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in _MAKERS)


@cache
def _keys() -> dict[str, int]:
    """Every name and alias as a key -> index in the catalogue; where a name and an alias collide, the name counts."""
    keys: dict[str, int] = {}
    for index, card in enumerate(model_specs.gpus()):
        for alias in card["aliases"]:
            keys.setdefault(_key(alias), index)
    return keys | {_key(card["name"]): index for index, card in enumerate(model_specs.gpus())}


def _by_name(wanted: str) -> dict[str, Any] | None:
    """The card of that name; or the only one, in all its spellings, that has every word of it."""
    cards, key = model_specs.gpus(), _key(wanted)
    for candidate in (key, f"{key}gb"):
        if key and candidate in _keys():
            return cards[_keys()[candidate]]
    words = set(_words(wanted))
    if not words or _SIZE.fullmatch(wanted):
        return None
    matches = [card for card in cards if words <= _all_words(card)]
    if len(matches) > 1:
        names = ", ".join(card["name"] for card in matches[:6])
        raise UnknownDeviceError(f"`{printable(wanted)}` could be several cards", hint=f"name one: {names}")
    return matches[0] if matches else None


def _sibling_note(wanted: str, card: dict[str, Any]) -> str:
    """What to say where a name without a size stands for one of several sizes: `a100`, `v100`, `3080`."""
    cards, key = model_specs.gpus(), re.escape(_key(wanted))
    others = dict.fromkeys(cards[i]["name"] for k, i in _keys().items() if re.fullmatch(rf"{key}\d+gb", k))
    others.pop(card["name"], None)
    return f"`{wanted}` is taken as {card['name']}; also sold as {', '.join(others)}" if others else ""


def _words(text: str) -> list[str]:
    """The words of a name that tell cards apart; `24 gb` is one."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"(\d)\s+gb?\b", r"\1gb", text.lower()))
    return [word for word in words if word not in _MAKERS]


def _all_words(card: dict[str, Any]) -> set[str]:
    """Every word that any spelling of a card has, and its size."""
    return {word for name in (card["name"], *card["aliases"]) for word in _words(name)} | {f"{card['nominal_gb']}gb"}


def _nearest(wanted: str) -> list[str]:
    """The three names that look most like a text."""
    names = {_key(name): card["name"] for card in model_specs.gpus() for name in (*card["aliases"], card["name"])}
    import difflib

    close = difflib.get_close_matches(_key(wanted)[:64], names, n=6, cutoff=0.6)
    return list(dict.fromkeys(names[key] for key in close))[:3]


def _by_size(number: str, unit: str, wanted: str) -> Device:
    """A card of which only the size is known."""
    if unit in ("gb", "g"):
        return _by_nominal_size(number, wanted)
    return _of_bytes(_scaled(number, _UNITS[unit], wanted), wanted)


def _by_nominal_size(number: str, wanted: str) -> Device:
    """A card sold as so many GB: the smallest of the catalogue, or decimal gigabytes where it has none."""
    sold = [card for card in model_specs.gpus() if str(card["nominal_gb"]) == number and _total(card) is not None]
    if not sold:
        note = f"{wanted} read as decimal gigabytes: no card of the catalogue is sold with so many"
        return _of_bytes(_scaled(number, 1000**3, wanted), wanted, note)
    card = min(sold, key=lambda card: (_total(card) or 0, card["name"]))
    note = f"{wanted} read as a card sold as {number} GB; taken is the smallest, {card['name']}"
    return _device(card, f"{note}: name another, or give its size in GiB")


def _scaled(number: str, scale: int, wanted: str) -> int:
    """A decimal number times a unit, in integers; refused where no card has so little or so much."""
    whole, _, fraction = number.partition(".")
    nbytes = int(whole + fraction) * scale // int(10 ** len(fraction))
    if not _SMALLEST <= nbytes <= _LARGEST:
        raise UnknownDeviceError(
            f"`{printable(wanted)}` is no size of a card; it must be between {human(_SMALLEST)} and {human(_LARGEST)}",
            hint="give a size such as 80GiB, or a name such as a100-80gb",
        )
    return nbytes


def _of_bytes(nbytes: int, wanted: str, note: str = "") -> Device:
    """A card of exactly that size; the rest from the card whose reported total is nearest."""
    distance, index = min(
        (abs(reported - nbytes), index) for index, card in enumerate(model_specs.gpus()) for reported in _reported(card)
    )
    if distance * 1000 <= nbytes * _SAME_CARD_PER_MILLE:
        card = model_specs.gpus()[index]
        major, minor = card["compute_capability"]
        taken = f"is that of {card['name']}, the nearest in size"
        bf16 = bool(card["bf16"])
    else:
        major, minor = _ASSUMED_CAPABILITY
        taken, bf16 = "is assumed", True
    notes = (note, f"only the size was given; compute capability {major}.{minor} {taken}")
    return Device(wanted, nbytes, (major, minor), bf16=bf16, note="; ".join(part for part in notes if part))


def _reported(card: dict[str, Any]) -> list[int]:
    """Every total that CUDA or nvidia-smi was seen to report for a card, in bytes."""
    printed = [mib * MIB for mib in (card["nvidia_smi_mib"], *card["nvidia_smi_mib_seen"]) if mib is not None]
    cuda = [card["cuda_bytes"]] if card["cuda_bytes"] is not None else []
    return printed + cuda + [seen["bytes"] for seen in card["cuda_bytes_seen"]]
