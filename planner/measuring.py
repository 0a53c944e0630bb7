"""One measurement, from the request to the child's last word: what it needs is checked before anything heavy is imported or started."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner import api, stack
from planner.errors import InvalidRecipeError, MeasurementError, QplanError, UnavailableError, UnsupportedModelError
from planner.recipe import Recipe, make_recipe
from planner.spec import ModelSpec
from planner.stack import Stack
from planner.supervision import Ending, Message, supervise
from planner.units import GIB, KIB, MIB
from planner.value import Value

if TYPE_CHECKING:
    from planner.device import Device

TIMEOUT_S = 3600.0
"""Seconds that a child may take, unless the user says otherwise."""

PROGRAM = (sys.executable, "-m", "planner.engines.measured")
"""What measures."""

WORDS = {
    "load": "loading the model", "prepare": "preparing it", "forward": "forward", "backward": "backward",
    "optimizer_step": "optimizer step", "evaluation": "evaluation", "save": "saving the adapter",
}  # fmt: skip
"""What a child is at, by phase."""

Progress = Callable[[str], None]


class Order(Value):
    """
    A measurement that was asked for, checked.

    Attributes:
        spec, recipe, stack: The run, resolved for the installed libraries.
        knobs: The recipe's knobs as they were asked for.
        card: The card; None for the CPU.
        where: `cpu`, `cuda` or `cuda:N`.
        weights: What the child's loader takes: `synthetic`, a Hub id or a folder.
        ceiling: Bytes that may be alive on the CPU; None for no end.
        revision: Branch, tag or commit of a Hub id.
    """

    spec: ModelSpec
    recipe: Recipe
    stack: Stack
    card: Device | None
    where: str
    weights: str
    ceiling: int | None = None
    revision: str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def resolved(self, **changes: Any) -> Recipe:
        """The recipe with some knobs changed, and what follows from them."""
        return stack.resolve(make_recipe(**{**self.knobs, **changes}), self.stack, self.spec.dtype)

    def job(self, steps: int, recipe: Recipe | None = None) -> dict[str, Any]:
        """
        What the child reads.

        Args:
            steps: Measured steps, after one that warms up.
            recipe: Another recipe than the one that was asked for.
        """
        return {
            "model": {"id": self.spec.id, "model_type": self.spec.model_type, "config": self.spec.config},
            "recipe": (recipe or self.recipe).model_dump(),
            "weights": self.weights,
            "steps": steps,
            "device": self.where,
            "limit_bytes": self.ceiling,
            "revision": self.revision,
        }


def ordered(
    model: api.Model,
    knobs: Mapping[str, Any],
    *,
    weights: str = "synthetic",
    device: str = "auto",
    ceiling: int | None = None,
    revision: str | None = None,
) -> Order:
    """
    Check what is asked for.

    Args:
        model: As for `estimate`.
        knobs: Fields of `Recipe`.
        weights: As for `verify`.
        device: As for `verify`.
        ceiling: As for `verify`.
        revision: As for `verify`.

    Raises:
        QplanError: The request is wrong, or there is no such card.
    """
    spec, versions, where = api.find_spec(model, revision), stack.detect(), _device(device)
    recipe = stack.resolve(make_recipe(**knobs), versions, spec.dtype)
    card = None if where == "cpu" else _card(where)
    _check(where, ceiling, recipe)
    return Order(spec, recipe, versions, card, where, _weights(weights, model), ceiling, revision, dict(knobs))


def check_timeout(timeout: object) -> None:
    """
    Seconds, or not.

    Raises:
        InvalidRecipeError: It is no number above 0.
    """
    if not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
        raise InvalidRecipeError(f"timeout is {timeout!r}; it must be a number of seconds above 0")


def run_child(job: Mapping[str, Any], *, timeout: float = TIMEOUT_S, progress: Progress | None = None) -> Message:
    """
    One measurement in a process of its own.

    Args:
        job: What `planner.engines.measured` reads.
        timeout: Seconds after which it is ended.
        progress: Is told what it is at.

    Returns:
        Its last message: a `result`, or `out_of_memory`.

    Raises:
        MeasurementError: It died, hung, or trained nothing.
        QplanError: What it refused.
    """

    def heard(message: Message) -> None:
        if progress is not None:
            words = message.get("stage") or (WORDS.get(str(message.get("phase"))) if message.get("begins") else None)
            if words:
                progress(f"measuring: {words}")

    ending = supervise(PROGRAM, job, timeout_s=timeout, on_message=heard)
    last = ending.messages[-1] if ending.messages else {}
    if "result" in last or "out_of_memory" in last:
        return last
    raise trouble(ending)


def trouble(ending: Ending) -> QplanError:
    """
    What went wrong in a child, as an error.

    Args:
        ending: How it ended, without a result.
    """
    from planner import errors

    last = ending.messages[-1] if ending.messages else {}

    if "not_real" in last:
        return MeasurementError(
            f"the training step is not real: {last['not_real']}",
            hint="such a step's memory proves nothing: check the weights, the dtypes and the learning config",
        )
    if "refused" in last:
        told = last["refused"]
        kind = getattr(errors, str(told["error"]), UnsupportedModelError)
        return kind(told["message"], hint=told["hint"])
    at = next((m for m in reversed(ending.messages) if "phase" in m or "stage" in m), {})
    where = f" in {WORDS.get(str(at['phase']), at['phase'])}" if "phase" in at else " before it began"
    words = [line.strip() for line in ending.stderr.strip().splitlines() if line.strip()]
    why = f": {words[-1][:300]}" if words and ending.how == "failed" else ""
    hints = {
        "timed_out": "pass --timeout with more seconds",
        "killed": "SIGKILL is what the system does when RAM is short: try a smaller model or batch",
    }
    return MeasurementError(
        f"the measuring process {ending.sentence}{where}{why}",
        hint=hints.get(ending.how, "report it with the command, if another model or version does the same"),
    )


def _device(text: str) -> str:
    """`cpu`, `cuda` or `cuda:N`."""
    if text == "cpu":
        return "cpu"
    name, _, number = text.partition(":")
    if text not in ("auto", "cuda") and not (name == "cuda" and number.isdecimal()):
        raise InvalidRecipeError(f"device is `{text}`; it must be auto, cuda, cuda:N or cpu")
    return "cuda" if text == "auto" else text


def _card(where: str) -> Device:
    """
    The card that CUDA calls so.

    Raises:
        UnavailableError: There is none.
    """
    from planner import cards, sampling

    number = int(where.partition(":")[2] or 0)
    seen = None
    with contextlib.suppress(UnavailableError):
        seen = sampling.device_seen(number)
    found = None if seen is None else cards.device_of(seen)
    if found is None:
        raise UnavailableError(
            f"there is no NVIDIA GPU here that CUDA calls `{where}`, to measure on",
            hint="pass --device cpu and a small model to run the same path on the CPU; qplan doctor says what this machine has",
        )
    return found


def _check(where: str, ceiling: int | None, recipe: Recipe) -> None:
    if ceiling is not None and where != "cpu":
        raise InvalidRecipeError("ceiling is given, but a card has its own; it is for --device cpu")
    if ceiling is not None and (type(ceiling) is not int or ceiling < 1):
        raise InvalidRecipeError(f"ceiling is {ceiling!r}; it must be a whole number of bytes")
    if where == "cpu" and recipe.attn == "flash_attention_2":
        raise InvalidRecipeError("attn is `flash_attention_2`, which has no kernels for the CPU", hint="pass --attn sdpa")
    if recipe.loss == "liger":
        raise InvalidRecipeError("loss is `liger`, which verify does not run yet", hint="pass --loss full or chunked")


def size(text: str) -> int:
    """
    Bytes from text: `200MiB`, `2GiB`, `1500000`.

    Raises:
        InvalidRecipeError: It is no size.

    >>> size("200MiB"), size("1.5 GiB"), size("4096")
    (209715200, 1610612736, 4096)
    """
    import re

    match = re.fullmatch(r"(\d{1,15})(?:\.(\d{1,6}))?\s*(|KiB|MiB|GiB)", text.strip(), re.ASCII | re.IGNORECASE)
    scale = {"": 1, "kib": KIB, "mib": MIB, "gib": GIB}[match[3].lower()] if match else 0
    nbytes = int(match[1] + (match[2] or "")) * scale // 10 ** len(match[2] or "") if match else 0
    if nbytes < 1:
        raise InvalidRecipeError(f"`{text[:40]}` is no size; it must be bytes, KiB, MiB or GiB", hint="such as 200MiB")
    return nbytes


def _weights(weights: str, model: api.Model) -> str:
    """What the child's loader takes."""
    if weights == "synthetic":
        return weights
    if weights != "hub":
        if not Path(weights).expanduser().is_dir():
            raise InvalidRecipeError(f"weights is `{weights}`; it must be synthetic, hub, or a folder with a checkpoint")
        return str(Path(weights).expanduser())
    if not isinstance(model, str):
        raise InvalidRecipeError("weights is `hub`, but the model has no id on the Hub", hint="pass the id, or weights='synthetic'")
    return model
