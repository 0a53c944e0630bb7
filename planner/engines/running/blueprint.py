"""What to trace: the config and the class of the model, whole or with three instances of what repeats."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest import mock

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from planner.engines.running.layers import NOTHING, Instances, find_stack, kept, shortened
from planner.engines.running.older import dtype_argument
from planner.errors import UnsupportedModelError
from planner.recipe import Recipe
from planner.spec import ModelSpec
from planner.value import NamedTuple

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Blueprint(NamedTuple):
    """
    The model that is traced: the whole one, or one with three instances of what repeats.

    Attributes:
        config: Its transformers config.
        model_class: The class that is instantiated.
        attn: The attention implementation that is asked for.
        instances: Which layers are which instance; None where the model has no list of layers.
        num_layers: Layers of the traced model.
        whole_layers: Layers of the whole model.
    """

    config: Any
    model_class: type
    attn: str | None
    instances: Instances | None
    num_layers: int
    whole_layers: int


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, the libraries keep their warnings and progress bars to themselves, and load tensors one by one."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    enabled = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), mock.patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if enabled:
            transformers.utils.logging.enable_progress_bar()


@lru_cache(maxsize=8)
def draw(spec: ModelSpec, recipe: Recipe, *, every_layer: bool) -> Blueprint:
    """
    Decide what to trace.

    Args:
        spec: The checkpoint.
        recipe: The resolved recipe.
        every_layer: Whether to run all layers, whatever repeats.

    Raises:
        UnsupportedModelError: The installed transformers cannot build the model.
    """
    config, model_class = _resolve(spec)
    dtype = DTYPES[recipe.dtype]
    whole, attn = _draft(model_class, config, dtype, recipe)
    stack = find_stack(whole)
    if stack is None:
        return Blueprint(config, model_class, attn, None, 1, 1)
    total = len(stack.kinds)
    layers = kept(stack)
    repeated = stack.repetition
    if not every_layer and len(layers) < total:
        short = shortened(config, layers)
        if short is not None and _kinds(model_class, short, dtype, attn) == tuple(stack.kinds[i] for i in layers):
            return Blueprint(short, model_class, attn, Instances(stack.path, repeated), len(layers), total)
    return Blueprint(config, model_class, attn, Instances(stack.path, NOTHING), total, total)


def _kinds(model_class: Any, config: Any, dtype: torch.dtype, attn: str | None) -> tuple[Hashable, ...]:
    """What the layers of a shortened model are; none where the family cannot be shortened so."""
    try:
        found = find_stack(skeleton(model_class, config, dtype, attn))
    except UnsupportedModelError:
        return ()
    return found.kinds if found else ()


def _resolve(spec: ModelSpec) -> tuple[Any, type]:
    """The config, and the class that serves it: the whole of a checkpoint with several towers, where there is such a class."""
    upgrade = "pip install -U transformers, or pass --engine analytic"
    if spec.model_type not in CONFIG_MAPPING:
        raise UnsupportedModelError(f"transformers {transformers.__version__} has no `{spec.model_type}`, which {spec.id} is", hint=upgrade)
    fields = {name: value for name, value in spec.config.items() if name not in ("model_type", "quantization_config", "auto_map")}
    try:
        config = AutoConfig.for_model(spec.model_type, **fields)
    except Exception as error:  # strict configs raise a class of the Hub's library that derives from nothing narrower
        reason = " ".join(str(error).split())
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} cannot read the config of {spec.id} (`{spec.model_type}`): {reason}",
            hint=upgrade,
        ) from error
    text_only = None
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        found = auto._model_mapping.get(type(config), None)
        model_class = found[0] if isinstance(found, (list, tuple)) else found
        if model_class is None:
            continue
        if model_class.config_class is config.sub_configs.get("text_config"):
            text_only = text_only or model_class
        else:
            return config, model_class
    if text_only is not None:  # as AutoModelForCausalLM.from_config has it
        return config.get_text_config(), text_only
    raise UnsupportedModelError(
        f"transformers {transformers.__version__} has no causal language model for `{spec.model_type}` ({spec.id})",
        hint="pass --engine analytic, or trace a model of your own with planner.trace",
    )


def skeleton(model_class: Any, config: Any, dtype: torch.dtype, attn: str | None) -> Any:
    """
    The model on the meta device.

    Raises:
        UnsupportedModelError: Its class cannot be instantiated here: a kernel package is missing, a config contradicts itself.
    """
    try:
        with torch.device("meta"), quiet():
            return model_class._from_config(copy.deepcopy(config), attn_implementation=attn, **dtype_argument(dtype))
    except Exception as error:
        why = str(error).strip().splitlines()
        raise UnsupportedModelError(
            f"{model_class.__name__} cannot be built by transformers {transformers.__version__}: "
            f"{why[0] if why else type(error).__name__}",
            hint="pass --engine analytic, or another --attn",
        ) from error


def _draft(model_class: Any, config: Any, dtype: torch.dtype, recipe: Recipe) -> tuple[Any, str | None]:
    """
    The whole model on the meta device, and the attention that it asks for: eager, where sdpa is only the default and the family has none.

    Source:
        transformers@5.23.0, modeling_utils.py, get_correct_attn_implementation.
    """
    try:
        return skeleton(model_class, config, dtype, recipe.attn), recipe.attn
    except UnsupportedModelError:
        if recipe.attn != "sdpa":
            raise
        return skeleton(model_class, config, dtype, None), None
