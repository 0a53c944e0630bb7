"""
The child that `qplan verify` starts: one measurement, told over its pipe.

Its messages: `{"stage": text}` and `{"phase": name, "begins": bool}` while it runs; then one of `{"result": ...}`,
`{"out_of_memory": ...}`, `{"not_real": sentence}` and `{"refused": {"error", "message", "hint"}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planner.errors import QplanError
from planner.supervision import Channel, attend


def main() -> None:
    """Measure what the job says."""
    channel, job = attend()
    channel.send({"stage": "importing torch and transformers"})
    try:
        channel.send(_measured(job, channel))
    except QplanError as error:
        channel.send({"refused": {"error": type(error).__name__, "message": error.message, "hint": error.hint}})


def _measured(job: dict[str, Any], channel: Channel) -> Mapping[str, Any]:
    """The last message."""
    import logging

    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # bitsandbytes and transformers say what a machine without a card lacks
    from planner.engines.measured.realness import NotReal
    from planner.engines.measured.run import Order, measure
    from planner.engines.measured.tracker import Full

    logging.disable(disabled)
    order = Order.parse(job)
    try:
        if order.device != "cpu":
            from planner.engines.measured.cuda import measure_on_card

            return measure_on_card(order, channel.send)
        found = measure(order, channel.send)
    except NotReal as error:
        return {"not_real": str(error)}
    except Full as full:
        return {"out_of_memory": full.model_dump()}
    return {
        "result": {
            "history": found.history.model_dump(),
            "losses": found.losses,
            "num_quantized_parameters": found.num_quantized_parameters,
            "num_trainable_parameters": found.num_trainable_parameters,
        }
    }


if __name__ == "__main__":
    main()
