"""The screen of `qplan doctor`."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable

from planner.doctor import Allocator, Diagnosis, Driver, Package, Visible, VisibleDevice
from planner.hardware import Card, Instance, Memory, Process
from planner.render.terminal import Terminal, labelled, printable, wrap
from planner.units import gib, human

_LABEL = 11


def lines(found: Diagnosis, terminal: Terminal) -> list[str]:
    """
    The findings as lines of text: driver, cards, what CUDA sees, the stack, settings, what is different here.

    Args:
        found: What `planner.doctor.diagnose` found.
        terminal: What can be shown.
    """
    parts = [
        _driver(found.driver, terminal),
        *(_card(card, found.visible, terminal) for card in found.cards),
        _visible(found, terminal),
        _host(found, terminal),
        _stack(found, terminal),
        _allocator(found.allocator, terminal),
        [line for note in found.notes for line in ["", *_row("note", note, terminal)]],
    ]
    return [line for part in parts for line in part]


def as_json(found: Diagnosis) -> str:
    """The contract of `qplan doctor --json`: sizes in bytes."""
    return json.dumps(found.model_dump(), indent=2, ensure_ascii=False)


def _row(label: str, text: str, terminal: Terminal) -> list[str]:
    """A sentence beside its label."""
    return labelled(label, wrap(printable(text), terminal.width - _LABEL), _LABEL)


def _driver(driver: Driver, terminal: Terminal) -> list[str]:
    if driver.problem is None:
        cuda = f", runs CUDA up to {driver.cuda}" if driver.cuda else ""
        return _row("driver", f"{driver.version or 'of unknown version'}{cuda}", terminal)
    return [*_row("driver", driver.problem, terminal), *(_row("", f"to do: {driver.hint}", terminal) if driver.hint else [])]


def _card(card: Card, visible: Visible, terminal: Terminal) -> list[str]:
    """One card: a title, and a row for each thing that is known."""
    whole = next((device for device in visible.devices if device.card == card.index and device.instance is None), None)
    title = f"card {card.index:<{_LABEL - 6}} {printable(card.name or 'of unknown name')}"
    rows = [_row("", f"{_seen(whole, card, visible)}{', ' + card.uuid if card.uuid else ''}", terminal)]
    if card.is_lost:
        return ["", terminal.paint(title, "bold"), *_row("", "went away while it was read", terminal)]
    if card.memory is not None:
        rows.append(_row("memory", _memory(card.memory), terminal))
    if whole is not None:
        rows.append(_row("for a plan", _plan(whole), terminal))
    rows.append(_row("computes", _computes(card), terminal))
    rows += [_instance(part, visible, terminal) for part in card.instances]
    rows += [labelled("used by", _users(card.processes, terminal), _LABEL)] if card.processes is not None else []
    if card.unanswered:
        told = ", ".join(f"{what.replace('_', ' ')} ({reason})" for what, reason in card.unanswered.items())
        rows.append(_row("not told", told, terminal))
    return ["", terminal.paint(title, "bold"), *(line for row in rows for line in row)]


def _seen(device: VisibleDevice | None, card: Card, visible: Visible) -> str:
    if device is not None:
        return f"cuda:{device.ordinal}"
    parts = [seen.ordinal for seen in visible.devices if seen.card == card.index]
    return f"a part of it is cuda:{parts[0]}" if parts else "not seen by CUDA"


def _memory(memory: Memory) -> str:
    kept = f"; {human(memory.reserved_bytes)} more are the driver's" if memory.reserved_bytes else ""
    return f"{gib(memory.total_bytes)}: {human(memory.used_bytes)} used, {human(memory.free_bytes)} free{kept}"


def _plan(device: VisibleDevice) -> str:
    if device.usable_bytes is None or device.used_bytes is None or device.context_bytes is None:
        return "its memory is not known here: name its size with --gpu SIZE"
    used = f"the {human(device.used_bytes)} in use and " if device.used_bytes else ""
    less = f"without {used}a CUDA context of {human(device.context_bytes)}"
    return f"{gib(device.usable_bytes)} for tensors{' of the shared memory' if device.memory == 'shared' else ''}, {less}"


def _computes(card: Card) -> str:
    """Compute capability, bf16, ECC, MIG, driver model."""
    if card.compute_capability is None:
        told = ["compute capability unknown"]
    else:
        major, minor = card.compute_capability
        told = [f"{major}.{minor}", "bf16 native" if major >= 8 else "bf16 emulated, slowly: --compute-dtype fp16"]
    told += [f"{name} {'on' if value else 'off'}" for name, value in (("ECC", card.ecc), ("MIG", card.mig)) if value is not None]
    return ", ".join([*told, *([card.driver_model] if card.driver_model else [])])


def _instance(part: Instance, visible: Visible, terminal: Terminal) -> list[str]:
    """A MIG instance: name, ids, memory, and what CUDA makes of it."""
    device = next((seen for seen in visible.devices if seen.instance == part.index and seen.uuid == part.uuid), None)
    ids = f"instance {part.gpu_instance}/{part.compute_instance}"
    seen = "not seen by CUDA" if device is None else f"cuda:{device.ordinal}, for a plan {_plan(device)}"
    return [
        *_row(f"part {part.index}", f"{part.name or 'of unknown name'}, {ids}", terminal),
        *_row("", part.uuid or "without a UUID", terminal),
        *_row("", _memory(part.memory) if part.memory else "its memory is not told", terminal),
        *_row("", seen, terminal),
    ]


def _users(processes: Iterable[Process], terminal: Terminal) -> list[str]:
    """A line a process: how much, which, whose."""
    found = []
    whose = {True: "yours", False: "another user's", None: "owner unseen"}
    for process in processes:
        size = "not told" if process.used_bytes is None else human(process.used_bytes)
        where = "" if process.gpu_instance is None else f", instance {process.gpu_instance}"
        name = printable(process.name or "unknown program")
        text = f"{size:>10}  pid {process.pid} {name}, {whose[process.is_own]}, {process.kind}{where}"
        found.append(terminal.cut(text, terminal.width - _LABEL))
    return found or ["nobody"]


def _visible(found: Diagnosis, terminal: Terminal) -> list[str]:
    """CUDA_VISIBLE_DEVICES and what it leaves."""
    visible = found.visible
    if not found.cards:
        return []
    variable = "not set" if visible.variable is None else f"`{visible.variable}`" if visible.variable else "empty"
    lost = {card.index for card in found.cards if card.is_lost}
    devices = ", ".join(f"cuda:{device.ordinal} is {_which(device, lost)}" for device in visible.devices) or "no device"
    text = f"CUDA_VISIBLE_DEVICES is {variable}: {devices}{'; ' + visible.reason if visible.reason else ''}"
    return ["", *_row("CUDA sees", text, terminal)]


def _which(device: VisibleDevice, lost: Collection[int]) -> str:
    part = "" if device.instance is None else f", part {device.instance}"
    return f"card {device.card}{part}{', which went away' if device.card in lost else ''}"


def _host(found: Diagnosis, terminal: Terminal) -> list[str]:
    """The host's memory, where a card shares it."""
    if found.host is None or not any(card.is_unified for card in found.cards):
        return []
    return ["", *_row("host", f"{gib(found.host.total_bytes)} of memory, {gib(found.host.free_bytes)} available", terminal)]


def _stack(found: Diagnosis, terminal: Terminal) -> list[str]:
    """A line a package, and what plans take."""
    rows = ["", *_row("stack", f"plans take: {found.stack_source}", terminal)]
    for package in found.packages:
        rows += labelled(f"  {package.name}", [terminal.paint(_version(package), "bold")], 17)
        rows += [terminal.paint(line, "dim") for line in wrap(package.means, terminal.width, 6)]
    return rows + labelled("  traced engine", wrap(found.traced, terminal.width - 17), 17)


def _version(package: Package) -> str:
    if package.version is None:
        return f"not installed; planned as {package.planned_version}"
    return package.version if package.version == package.planned_version else f"{package.version}; planned as {package.planned_version}"


def _allocator(allocator: Allocator, terminal: Terminal) -> list[str]:
    if allocator.variable is None:
        text = "PyTorch's own settings: PYTORCH_CUDA_ALLOC_CONF is not set"
    elif allocator.problem is not None:
        text = f"PyTorch would refuse {allocator.variable}={allocator.text}: {allocator.problem}"
    else:
        told = ", ".join(f"{_setting(key, value)}" for key, value in allocator.settings.items()) or "nothing but what is usual"
        text = f"{allocator.variable} says {told}"
    return ["", *_row("allocator", text, terminal)]


def _setting(key: str, value: object) -> str:
    if key.endswith("_bytes") and isinstance(value, int):
        return f"{key.removesuffix('_bytes').replace('_', ' ')} {human(value)}"
    if isinstance(value, (list, tuple)):
        value = value[0] if len(set(value)) == 1 else " ".join(map(str, value))
    return f"{key.replace('_', ' ')} {str(value).lower() if isinstance(value, bool) else value}"
