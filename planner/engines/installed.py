"""The way to the traced engine: whether what it runs is installed, and as it was asked for."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from types import ModuleType

from planner.errors import InvalidRecipeError, MissingExtraError
from planner.stack import PACKAGES, Stack, detect

NEEDED = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "trl")
"""What the traced engine runs."""


def traced_engine(stack: Stack | None, progress: Callable[[str], None] | None = None) -> ModuleType:
    """
    The traced engine, loaded.

    Args:
        stack: The versions that were asked for; it can only run those that are installed. None asks for nothing.
        progress: Is told that the libraries are being imported, which takes seconds.

    Raises:
        MissingExtraError: A library that it runs is not installed.
        InvalidRecipeError: Other versions were asked for than are installed.
    """
    check_installed(stack)
    if progress:
        progress("importing torch and transformers")
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # bitsandbytes and transformers say what a machine without a card lacks
    try:
        from planner.engines import traced
    finally:
        logging.disable(disabled)
    return traced


def check_installed(stack: Stack | None) -> None:
    """
    Refuse what the traced engine cannot run here; nothing is imported for that.

    Args:
        stack: As for `traced_engine`.

    Raises:
        MissingExtraError: A library that it runs is not installed.
        InvalidRecipeError: Other versions were asked for than are installed.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"the traced engine runs {', '.join(NEEDED)}; not installed here: {', '.join(missing)}", hint='pip install "qplan[torch]"'
        )
    installed = detect()
    others = [
        f"{name}=={stack.versions[name]}"
        for name in PACKAGES
        if stack and _release(stack.versions[name]) != _release(installed.versions[name])
    ]
    if others:
        raise InvalidRecipeError(
            f"stack asks for {', '.join(others)}, but the traced engine runs what is installed",
            hint="leave --stack out, install those versions, or pass --engine analytic",
        )


def _release(version: str) -> str:
    """A version without the label of its build: 2.13.0+cpu is 2.13.0."""
    return version.partition("+")[0]
