"""The golden figures, and what the closed form says of the same runs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from planner.architecture import build_spec
from planner.device import Device
from planner.dtypes import DType
from planner.engines.analytic import Analysis, analyse
from planner.ledger import Category, Phase
from planner.recipe import make_recipe
from planner.stack import LATEST, Stack, resolve
from planner.units import GIB, round_up
from tests.oracle.matrix import LAYERS, MODELS

GOLDEN = Path(__file__).with_name("golden")
BLOCK_BYTES = 512  # of PyTorch's caching allocator
RESTING = {Category.PARAMETER, Category.QUANT_STATE, Category.ADAPTER, Category.OPTIMIZER_STATE, Category.BUFFER}


@cache
def document(name: str) -> dict[str, Any]:
    """One golden file; its rows by name."""
    content: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    content["runs"] = {row["name"]: row for row in content["runs"] if "error" not in row["figures"]}
    return content


NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))


@cache
def analysis(name: str, run: str, more_layers: int = 0) -> Analysis:
    """What the closed form says of a run."""
    content = document(name)
    row = content["runs"][run]
    model = next(model for model in MODELS if model.name == name)
    config = {"model_type": model.model_type, **model.config(LAYERS + more_layers)}
    spec = build_spec(config, id=name, source="file")
    stack = Stack({**LATEST.versions, **content["versions"]}, "as measured")
    capability = tuple(row["compute_capability"])
    device = Device("Tesla T4" if capability < (8, 0) else "NVIDIA A100", 80 * GIB, capability, bf16=capability >= (8, 0))
    return analyse(spec, resolve(make_recipe(**row["recipe"]), stack, spec.dtype), stack, device)


def figures(name: str, run: str) -> dict[str, int]:
    """What the oracle says of a run."""
    numbers: dict[str, int] = document(name)["runs"][run]["figures"]
    return numbers


def saved_bytes(found: Analysis) -> int:
    """What lives when backward begins, and does not rest in memory anyway."""
    book = found.ledger
    begin = next(span.begin for span in book.timeline if span.phase is Phase.BACKWARD)
    return sum(a.nbytes for a in book.live_at(begin) if a.category not in RESTING)


def resting_bytes(found: Analysis) -> int:
    """What stays allocated between two steps, without the remainders that the allocator does not split off."""
    return found.steady_bytes - sum(a.nbytes for a in found.ledger.allocations if a.name.startswith("remainders"))


def golden_resting_bytes(name: str, run: str) -> int:
    """
    What the oracle leaves allocated between two steps, with its two differences from CUDA put right.

    It holds the batch's token ids through the run, where a data loader's batch dies with its step; and it keeps bitsandbytes'
    shared dynamic map on the CPU, where real quantisation leaves it on the card (bitsandbytes@0.50.2, functional.py,
    quantize_blockwise: `name2qmap["dynamic"]`).
    """
    recipe = document(name)["runs"][run]["recipe"]
    token_ids = round_up(recipe["batch_size"] * recipe["seq_len"] * DType.INT64.num_bytes, BLOCK_BYTES)
    shared_map = 256 * DType.FP32.num_bytes if recipe.get("double_quant") else 0
    return figures(name, run)["rounded_steady_bytes"] - token_ids + shared_map
