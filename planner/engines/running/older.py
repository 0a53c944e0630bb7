"""
What transformers 4 and bitsandbytes before 0.46 spell otherwise than the versions that the rest of this room is written for.

Everything that matters to memory is still their own code's doing: only names and arguments are translated here. Held against published
runs of transformers 4.48.1, PEFT 0.13.2, TRL 0.13.0, bitsandbytes 0.43.3 and accelerate 1.0.1 (`tests/measurements/`).
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

IS_OLDER = int(transformers.__version__.partition(".")[0]) < 5
"""Whether the installed transformers is from before 5.0."""


def dtype_argument(dtype: torch.dtype) -> dict[str, Any]:
    """What a model's constructors call the type of its weights. Source: transformers@4.48.1, modeling_utils.py, _from_config."""
    return {"torch_dtype" if IS_OLDER else "dtype": dtype}


def loading_arguments(*, to_card: bool) -> dict[str, Any]:
    """
    What keeps an empty checkpoint from being copied into weights that were made at random, and names the card as text.

    A model that is not quantised is on the host in either way. The quantizer's own device map is `{"": 0}`, whose number torch takes for
    the first device of the backend that traces, not for CUDA's.

    Args:
        to_card: Whether the checkpoint is loaded straight on the card.

    Source:
        transformers@4.48.1, modeling_utils.py, from_pretrained (low_cpu_mem_usage); quantizers/quantizer_bnb_4bit.py, update_device_map.
    """
    if not IS_OLDER:
        return {}
    return {"low_cpu_mem_usage": True, **({"device_map": {"": "cuda:0"}} if to_card else {})}


def stored_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """
    What a model's checkpoint holds: tied weights once, and since 5.0 in the layout before the loader's conversions.

    Source:
        transformers@5.23.0, core_model_loading.py, revert_weight_conversion; 4.48.1, modeling_utils.py, save_pretrained.
    """
    tensors = model.state_dict()
    if IS_OLDER:
        once = {name for name, _ in model.named_parameters()}
        again = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
        return {name: x for name, x in tensors.items() if name not in again}
    from transformers.core_model_loading import revert_weight_conversion

    tied = getattr(model, "all_tied_weights_keys", None) or {}
    found: dict[str, torch.Tensor] = revert_weight_conversion(model, {name: x for name, x in tensors.items() if name not in tied})
    return found
