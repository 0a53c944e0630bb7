"""
From config.json to the module table: one small declaration a family.

A family's file declares `FAMILIES`, model_type by model_type. Files are imported when a model asks for them, so that an estimate
of one model does not pay for sixty families.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from planner.architecture.family import Family
from planner.architecture.fields import Fields
from planner.architecture.registry import FILES
from planner.architecture.table import Table
from planner.dtypes import DType
from planner.errors import InvalidConfigError, UnsupportedModelError
from planner.spec import ModelSpec

__all__ = ["Family", "Fields", "Table", "build_spec", "family_of", "known_families"]


def known_families() -> list[str]:
    """Every model_type that has a declaration."""
    return sorted(FILES)


def family_of(model_type: str) -> Family:
    """
    The declaration of a model_type.

    Raises:
        UnsupportedModelError: There is none.
    """
    if model_type not in FILES:
        import difflib

        near = difflib.get_close_matches(model_type, FILES, n=3)
        raise UnsupportedModelError(
            f"model_type `{model_type}` is no family that the closed form knows; it needs a declaration in planner/architecture/",
            hint=f"families with similar names: {', '.join(near)}" if near else "see `qplan models` for the families that are known",
        )
    family: Family = import_module(f"planner.architecture.{FILES[model_type]}").FAMILIES[model_type]
    return family


def build_spec(
    config: Mapping[str, Any], *, id: str, source: str = "file", published_parameters: int | None = None
) -> ModelSpec:
    """
    The spec of a checkpoint from its config.json.

    Raises:
        UnsupportedModelError: The family has no declaration.
        InvalidConfigError: A field is missing, of the wrong type or out of range.
    """
    fields = Fields(config)
    model_type = fields.text("model_type")
    family = family_of(model_type)
    table = Table()
    family.table(fields, table)
    return ModelSpec(
        id=id,
        model_type=model_type,
        config=dict(config),
        modules=tuple(table.modules),
        buffers=tuple(table.buffers),
        dtype=_checkpoint_dtype(fields),
        source=source,
        published_parameters=published_parameters,
    )


def _checkpoint_dtype(fields: Fields) -> DType:
    """`dtype`, or `torch_dtype` as older files spell it, at the top or in the text section; fp32 where no file says it."""
    for section in (fields, fields.section("text_config", default={})):
        name = section.text("dtype", "torch_dtype", default="")
        if name:
            try:
                dtype = DType.parse(name)
            except ValueError:
                dtype = None
            if dtype not in (DType.FP32, DType.FP16, DType.BF16):
                raise InvalidConfigError(f"dtype is '{name}' in config.json; it must be float32, float16 or bfloat16")
            return dtype
    return DType.FP32
