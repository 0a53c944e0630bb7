"""What this machine has for a run, and what that means for its plan: driver, cards, versions, settings. Nothing is changed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal

from planner import nvml, stack
from planner.allocator.settings import VARIABLES, AllocatorSettings
from planner.cards import device_of
from planner.engines.installed import NEEDED
from planner.errors import InvalidRecipeError, UnavailableError
from planner.hardware import Card, Machine, Memory, host_memory
from planner.recipe import Recipe
from planner.value import Value, plain
from planner.verdict import context_of, usable_bytes
from planner.visible import ORDER, VARIABLE, Seen, Visibility, visible

_STILL = "Every plan still works: qplan estimate MODEL for common cards, --gpu NAME or --gpu SIZE for one."


class Driver(Value):
    """
    NVIDIA's driver.

    Attributes:
        version: As it calls itself; None where it cannot be asked.
        cuda: The newest CUDA that it runs, such as `13.0`.
        problem: Why it cannot be asked, in a sentence; None where it can.
        hint: What to do about that.
        platform: `linux`, `wsl`, `windows` or another name of Python's.
    """

    version: str | None
    cuda: str | None
    problem: str | None
    hint: str | None
    platform: str


class VisibleDevice(Value):
    """
    A device of CUDA: what a plan for it reckons with.

    Attributes:
        ordinal: The n of `cuda:n`.
        card: The number of its card in `Diagnosis.cards`.
        instance: The number of its MIG instance there, if it is one.
        name: As the driver spells it.
        uuid: What CUDA_VISIBLE_DEVICES may call it.
        bf16: `native`, or `emulated` by torch; None where the compute capability is not known.
        memory: `own`, `shared` with the host, or None where nobody says how much there is.
        total_bytes: Memory that processes can get.
        used_bytes: What all of them hold now.
        context_bytes: What one process's CUDA context takes: as measured on this card, else as published.
        usable_bytes: What is left for tensors.
    """

    ordinal: int
    card: int
    instance: int | None
    name: str
    uuid: str | None
    bf16: Literal["native", "emulated"] | None
    memory: Literal["own", "shared"] | None
    total_bytes: int | None
    used_bytes: int | None
    context_bytes: int | None
    usable_bytes: int | None


class Visible(Value):
    """
    What CUDA programs started from here see.

    Attributes:
        variable: CUDA_VISIBLE_DEVICES; None where it is not set.
        order: CUDA_DEVICE_ORDER; None where it is not set.
        devices: In CUDA's order.
        reason: Why there are not more, in words; empty where all are seen.
    """

    variable: str | None
    order: str | None
    devices: tuple[VisibleDevice, ...]
    reason: str


class Package(Value):
    """
    A library of the stack.

    Attributes:
        name: As PyPI spells it.
        version: What is installed; None where it is not.
        planned_version: What plans reckon with: that, or the newest profile's where the stack is not complete.
        means: What that version does, for a run with the default recipe.
    """

    name: str
    version: str | None
    planned_version: str
    means: str


class Allocator(Value):
    """
    The settings of PyTorch's allocator.

    Attributes:
        variable: The environment variable that PyTorch reads; None where none is set.
        text: What it says.
        settings: How PyTorch reads it, but for what stays as it is without: sizes in bytes.
        problem: Why PyTorch would refuse it; None where it would not.
    """

    variable: str | None
    text: str
    settings: dict[str, Any]
    problem: str | None


class Diagnosis(Value):
    """
    What was found.

    Attributes:
        driver: NVIDIA's driver.
        cards: As NVML sees them.
        visible: As CUDA sees them.
        packages: The stack.
        stack_source: Where plans take the versions from.
        traced: Whether the traced engine can run here, in a sentence.
        allocator: The settings of PyTorch's allocator.
        host: The host's memory, where it is told.
        notes: What is different on this machine, a sentence each.
    """

    driver: Driver
    cards: tuple[Card, ...]
    visible: Visible
    packages: tuple[Package, ...]
    stack_source: str
    traced: str
    allocator: Allocator
    host: Memory | None
    notes: tuple[str, ...]

    def model_dump(self) -> dict[str, Any]:
        """The contract of `qplan doctor --json`: nested dicts, lists, texts and integers; sizes end in `_bytes`."""
        return {"schema_version": 1, **plain(self._asdict())}


def diagnose(environment: Mapping[str, str] | None = None) -> Diagnosis:
    """
    Look at this machine.

    Args:
        environment: Variables; None for those of this process.
    """
    variables = os.environ if environment is None else environment
    driver, machine = _driver()
    seen = visible(variables.get(VARIABLE), machine.cards)
    host = host_memory()
    return Diagnosis(
        driver=driver,
        cards=machine.cards,
        visible=Visible(
            variables.get(VARIABLE),
            variables.get(ORDER),
            tuple(_device(device) for device in seen.devices),
            seen.reason if machine.cards else "",
        ),
        packages=_packages(),
        stack_source=stack.detect().source,
        traced=_traced(),
        allocator=_allocator(variables),
        host=host,
        notes=_notes(driver, machine, seen, variables.get(ORDER)),
    )


def _driver() -> tuple[Driver, Machine]:
    """The driver and what it knows, or why it cannot be asked."""
    platform = "wsl" if os.path.exists(nvml.WSL_FILE) else "windows" if sys.platform == "win32" else sys.platform  # noqa: PTH110
    try:
        machine = nvml.read()
    except UnavailableError as error:
        return Driver(None, None, error.message, error.hint, platform), Machine(None, None, ())
    cuda = None if machine.cuda is None else ".".join(map(str, machine.cuda))
    return Driver(machine.driver, cuda, None, None, platform), machine


def _device(seen: Seen) -> VisibleDevice:
    """A device of CUDA, with what of its memory a plan can use."""
    card, device = seen.card, device_of(seen)
    major = card.compute_capability[0] if card.compute_capability else None
    return VisibleDevice(
        ordinal=seen.ordinal,
        card=card.index,
        instance=seen.instance.index if seen.instance else None,
        name=(seen.instance or card).name or f"card {card.index}",
        uuid=(seen.instance or card).uuid,
        bf16=None if major is None else "native" if major >= 8 else "emulated",
        memory=None if device is None else "shared" if card.is_unified else "own",
        total_bytes=device.total_bytes if device else None,
        used_bytes=device.used_bytes if device else None,
        context_bytes=context_of(device).nbytes if device else None,
        usable_bytes=usable_bytes(device) if device else None,
    )


def _packages() -> tuple[Package, ...]:
    """Each library with what its version does to a default QLoRA run of `SFTTrainer`."""
    here, planned = stack.installed(), stack.detect()
    does = stack.behaviours(planned, Recipe())
    upcast = {"all": "every 16-bit parameter that is not quantised", "norms": "norms", "none": "nothing"}[does.kbit_upcast]
    means = {
        "torch": f"AdamW is {does.optim} where no optimizer is named",
        "transformers": "; ".join(
            (
                f"checkpointing is {'reentrant' if does.use_reentrant else 'not reentrant'}",
                f"loading {'first asks for the whole checkpoint at once' if does.warms_up_allocator else 'asks for a tensor at a time'}",
                f"reads tensors {'ahead, by chance' if does.reading == 'ahead' else 'in turn'}",
            )
        ),
        "peft": f"kbit-prepare leaves {upcast} in fp32{', and empties the cache' if does.empty_cache_after_kbit_prepare else ''}",
        "trl": f"loss is {does.loss}; adapters over a quantised base are {does.adapter_dtype.name.lower()}",
        "bitsandbytes": f"a frozen 4-bit linear keeps {'its input' if does.linear4bit_saves_input else 'no input'} for backward",
        "accelerate": f"16-bit outputs are {'copied to fp32' if does.outputs_to_fp32 else 'left as they are'} after the loss",
    }
    return tuple(Package(name, here.get(name), planned.versions[name], means[name]) for name in stack.PACKAGES)


def _traced() -> str:
    """Whether what the traced engine runs is installed."""
    here = stack.installed()
    missing = [name for name in NEEDED if name not in here]
    if missing:
        return f'it cannot run here without {", ".join(missing)}: pip install "qplan[torch]"'
    return "it can run here, card or not: --engine traced"


def _allocator(variables: Mapping[str, str]) -> Allocator:
    """The settings as PyTorch reads them."""
    name = next((name for name in VARIABLES if name in variables), None)
    text = variables[name] if name else ""
    try:
        given = AllocatorSettings.parse(text)._asdict()
    except InvalidRecipeError as error:
        return Allocator(name, text, {}, error.message)
    usual = AllocatorSettings()._asdict()
    units = {"max_split_size", "max_non_split_rounding", "large_segment_size"}
    changed = {f"{key}_bytes" if key in units else key: value for key, value in given.items() if value != usual[key]}
    return Allocator(name, text, changed, None)


def _notes(driver: Driver, machine: Machine, seen: Visibility, order: str | None) -> tuple[str, ...]:
    """What is different here, a sentence each."""
    cards = machine.cards
    notes = []
    if not any(device_of(device) for device in seen.devices):
        notes.append(_STILL)
    if driver.problem is None and not cards:
        reason = machine.unanswered.get("cards")
        notes.append(f"The driver runs, but finds no card{f' ({reason})' if reason else ''}: in a container, start it with --gpus all.")
    if cards:
        notes += _notes_on_torch(stack.installed().get("torch", ""), machine.cuda)
    if driver.platform == "wsl":
        notes.append(
            "WSL: Windows lends the card. What each process holds is not told, the desktop holds some of it, and a run that is too "
            "large may spill into the host's memory and crawl instead of failing."
        )
    elif any(card.driver_model == "WDDM" for card in cards):
        notes.append(
            "WDDM: Windows manages the card's memory. What each process holds is not told, the desktop holds some of it, and a run that "
            "is too large may spill into the host's memory and crawl instead of failing."
        )
    if any(card.is_unified for card in cards):
        notes.append(
            "Unified memory: card and host share one memory, and NVML does not tell its size. Plans take Linux's MemTotal and "
            "MemAvailable; the page cache competes with CUDA, and paged optimizers and offloading save nothing: they take from the same "
            "memory."
        )
    if len({card.name for card in cards}) > 1 and order != "PCI_BUS_ID":
        notes.append(f"The cards differ: CUDA may number them by speed. {ORDER}=PCI_BUS_ID gives the numbers that stand here.")
    return (*notes, *(note for card in cards for note in _notes_of(card)))


def _notes_on_torch(version: str, cuda: tuple[int, int] | None) -> list[str]:
    """
    Whether the label of torch's build goes with the cards.

    Source:
        https://docs.nvidia.com/deploy/cuda-compatibility: a driver runs all of CUDA's minor versions of its major one, and older ones.
    """
    build = version.partition("+")[2]
    if build == "cpu":
        return [f"torch {version} is built without CUDA: it uses no card. Install torch from PyPI, or a +cu build."]
    label = re.fullmatch(r"cu(\d{2})\d", build)
    if label and cuda and int(label[1]) > cuda[0]:
        way_out = "update the driver, or install an older build"
        return [f"torch {version} is built for CUDA {label[1]}; this driver runs CUDA {cuda[0]}: {way_out}."]
    return []


def _notes_of(card: Card) -> list[str]:
    """What will not stay as it is."""
    notes = [f"Card {card.index} went away while it was read: no CUDA program can use it before it is reset."] if card.is_lost else []
    for what, now, then in (("MIG", card.mig, card.mig_pending), ("ECC", card.ecc, card.ecc_pending)):
        if now != then and then is not None:
            turns = f"turns {'on' if then else 'off'} at its next reset"
            notes.append(f"Card {card.index}: {what} {turns}, and the memory that is left changes with it.")
    return notes
