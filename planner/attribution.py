"""
Which category a storage is, where nobody declares it: the one rule that traced and measured runs share.

Tensors that something holds by name (parameters, buffers, gradients, optimizer states) are told by their holder; this is for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.ledger import Category, Phase


def category_of(
    phase: Phase,
    shape: Sequence[int],
    *,
    vocab_size: int | None = None,
    is_in_layer: bool = False,
    grad_enabled: bool = True,
    copies_weight: bool = False,
) -> Category:
    """
    What a tensor is for, by when and where it is born.

    What forward makes, and what a checkpoint makes again in backward (then gradients are enabled), is an activation; what backward and
    the optimizer make is temporary until something holds it, and so is a weight in another type. Outside the layers whatever is as wide as
    the vocabulary is logits.

    Args:
        phase: When it is born.
        shape: Its shape.
        vocab_size: Width of the logits; None where there are none.
        is_in_layer: Whether one of the repeated layers makes it.
        grad_enabled: Whether autograd records then.
        copies_weight: Whether it is a copy of a weight in another type.

    >>> category_of(Phase.FORWARD, (1, 512, 32000), vocab_size=32000).value
    'logits'
    """
    if copies_weight and phase is not Phase.LOAD:
        return Category.TEMPORARY
    if phase in (Phase.FORWARD, Phase.BACKWARD, Phase.EVALUATION):
        if vocab_size is not None and not is_in_layer and len(shape) > 1 and shape[-1] == vocab_size:
            return Category.LOGITS
        return Category.ACTIVATION if phase is not Phase.BACKWARD or grad_enabled else Category.TEMPORARY
    return Category.PARAMETER if phase is Phase.LOAD else Category.TEMPORARY
