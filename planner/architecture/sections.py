"""What composite and hybrid models need besides the common blocks: nested configs, and stacks whose layers differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from planner.architecture.blocks import Dims
from planner.architecture.fields import Fields
from planner.architecture.table import Table
from planner.errors import InvalidConfigError

_Kind = TypeVar("_Kind")

TEXT = "model.language_model."
"""Where composite models keep their text decoder."""

# The rotary tables of a decoder that places text and images together: `mrope_section` only says which channel belongs to which
# axis, and a scaling changes no sizes.
PLAIN_POSITIONS = Fields({})


def filled(config: Fields, **defaults: Any) -> Fields:
    """The same config with its class's defaults in the place of fields that it does not have."""
    return Fields({**defaults, **config.values}, path=config.path)


def without(config: Fields, *names: str) -> Fields:
    """The same config without some fields."""
    return Fields({name: value for name, value in config.values.items() if name not in names}, path=config.path)


def section(config: Fields, name: str, **defaults: Any) -> Fields:
    """A nested config, whole or in part absent from many published files, with its class's defaults."""
    return filled(config.section(name, default={}), **defaults)


def shared_head(config: Fields, out: Table, dims: Dims, *, tied: bool) -> None:
    """The head of a composite model; the composite's own flag ties it, with the class's default as given here."""
    tied = config.flag("tie_word_embeddings", default=tied)
    out.linear("lm_head", dims.hidden, dims.vocab, tied_to="model.language_model.embed_tokens" if tied else None)


def frequencies(model: Table, name: str, number: int, *, prefix: str = "") -> None:
    """The frequencies of a rotary embedding whose number does not follow from `rope_parameters`, and their copy."""
    model.buffer(f"{name}.{prefix}inv_freq", (number,))
    model.buffer(f"{name}.{prefix}original_inv_freq", (number,))


def kinds_of(config: Fields, name: str, default: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """
    The kind of each layer, under the field that lists them.

    Raises:
        InvalidConfigError: The list has another length than the default, which has one entry a layer, or an unknown kind.
    """
    kinds = config.texts(name, default=list(default))
    if len(kinds) != len(default):
        raise InvalidConfigError(f"{config.path}{name} lists {len(kinds)} layers in config.json; it must list {len(default)}")
    for kind in kinds:
        if kind not in allowed:
            known = ", ".join(allowed)
            raise InvalidConfigError(f"{config.path}{name} has '{kind[:40]}' in config.json; it must be one of {known}")
    return kinds


def grouped(kinds: Sequence[_Kind]) -> dict[_Kind, list[int]]:
    """The indices of the layers of each kind, in the order in which the kinds first occur."""
    groups: dict[_Kind, list[int]] = {}
    for index, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(index)
    return groups


def where(kinds: Sequence[str], *wanted: str) -> list[int]:
    """The indices of the layers of these kinds."""
    return [index for index, kind in enumerate(kinds) if kind in wanted]
