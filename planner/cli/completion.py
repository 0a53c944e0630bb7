"""What the shell offers after a tab. Each function loads what it lists only when it is asked."""

from __future__ import annotations

from collections.abc import Callable


def models(incomplete: str) -> list[str]:
    """The bundled ids that begin so, in any case."""
    import model_specs

    return [id_ for id_ in model_specs.checkpoint_ids() if id_.lower().startswith(incomplete.lower())]


def gpus(incomplete: str) -> list[str]:
    """Names of cards that begin so, in any case, without makers and blanks."""
    import model_specs
    from planner import advice

    spellings = (advice.typed_name(name) for card in model_specs.gpus() for name in (card["name"], *card["aliases"]))
    return [name for name in dict.fromkeys(spellings) if name.lower().startswith(incomplete.lower())]


def choices(values: tuple[str, ...]) -> Callable[[str], list[str]]:
    """A completion of fixed values."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete
