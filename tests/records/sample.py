"""Records for tests, and how to write some from another process."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from planner import stack
from planner.architecture import build_spec
from planner.device import Device
from planner.recipe import make_recipe
from planner.records import Record, make
from planner.records.record import Level, Row
from planner.units import GIB, MIB

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "torch_dtype": "bfloat16",
}  # fmt: skip
A100 = Device("NVIDIA A100-SXM4-80GB", 80 * GIB, (8, 0))
NOON = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)


def sample(
    *,
    now: datetime = NOON,
    device: Device | None = A100,
    id: str = "org/model",
    source: str = "bundled",
    config: Any = CONFIG,
    **knobs: Any,
) -> Record:
    """A record of a small Llama; its figures are made up."""
    spec = build_spec(config, id=id, source=source)
    return make(
        origin="verify",
        engine="traced",
        device=device,
        driver="580.95.05",
        spec=spec,
        recipe=stack.resolve(make_recipe(**knobs), stack.LATEST, spec.dtype),
        stack=stack.LATEST,
        comparison=[Row("load", None, 3 * MIB, 3 * MIB), Row("forward", None, 5 * MIB, 6 * MIB), Row("forward", "logits", MIB, 2 * MIB)],
        peak={"allocated": Level(5 * MIB, 6 * MIB), "process": Level(500 * MIB, 510 * MIB)},
        process={"context_bytes": 480 * MIB, "workspace_bytes": None, "reserve_bytes": 15 * MIB},
        now=now,
    )


WRITER = """
import sys, datetime
from planner.records import Store
from tests.records.sample import NOON, sample
store, first, count = Store(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for number in range(first, first + count):
    print(store.add(sample(now=NOON + datetime.timedelta(seconds=number))).name, flush=True)
"""
"""A program: writes records into a folder, and tells each that is kept."""
