"""The application: which commands there are. A command's file is loaded when the command is named."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from planner.errors import QplanError

NAMES = ("estimate", "max", "fit", "which", "sweep", "compare", "gpus", "models", "verify", "records", "doctor")

EXAMPLES = {
    "estimate": "Example: qplan estimate meta-llama/Llama-2-70b-hf --rank 16 --gpu a6000",
    "max": "Example: qplan max meta-llama/Llama-3.1-8B --gpu t4 --vary batch-size",
    "fit": "Example: qplan fit meta-llama/Llama-3.1-8B --gpu t4 --seq-len 2048 --emit trl",
    "which": "Example: qplan which meta-llama/Llama-3.1-8B --seq-len 4096 --batch-size 4",
    "sweep": "Example: qplan sweep meta-llama/Llama-3.1-8B --gpu t4,l4 --batch-size 1:9 --seq-len 512,1024,2048 -o sweep.csv",
    "compare": "Example: qplan compare meta-llama/Llama-2-7b-hf mistralai/Mistral-7B-v0.1 --seq-len 2048",
    "gpus": "Example: qplan gpus meta-llama/Llama-3.1-8B --method lora",
    "models": "Example: qplan models qwen3 8b",
    "doctor": "Example: qplan doctor --json",
    "verify": "Example: qplan verify my-small-config.json --device cpu",
    "records": "Example: qplan records export records.json",
}

# The base of what the parser raises: it is public under no name of its own, but BadParameter is, and this is its grandparent.
ParserError: type[Any] = typer.BadParameter.__mro__[2]


class _Unvalidated:
    """
    Options are texts until the recipe reads them.

    Typer builds a validator for each of some forty options, typed or not, and loads a validation library to do so; that takes
    longer than the whole estimate. Texts and switches need none.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, each without a validator."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if "process_value" not in vars(param):
                param.process_value = _as_text(param)
        return params

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options in their groups, each with its whole name: boxes would cut the long ones at 80 columns."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(param, "rich_help_panel", None) or f"{param.param_type_name.title()}s", []).append(
                    record
                )
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=24)
        if isinstance(self, TyperGroup):
            self.format_commands(ctx, formatter)


def _as_text(param: Any) -> Any:
    """The processing of one parameter without a validator."""
    validated = param.process_value

    def process(ctx: Any, value: Any) -> Any:
        if param.required and not value:
            return validated(ctx, value)  # raises what is raised for a missing argument
        value = list(value or ()) if param.nargs == -1 else value
        return value if param.callback is None else param.callback(ctx, param, value)

    return process


class Command(_Unvalidated, TyperCommand):
    """One command."""


class Commands(_Unvalidated, TyperGroup):
    """The group of all commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names, in the order of the help."""
        return list(NAMES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, loaded now."""
        if cmd_name not in NAMES:
            return None
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name, cls=Command, epilog=EXAMPLES[cmd_name])(
            getattr(import_module(f"planner.cli.{cmd_name}"), cmd_name)
        )
        return get_command(single)


def app(*, with_completion: bool = True) -> typer.Typer:
    """The Typer application."""
    group = typer.Typer(
        name="qplan", cls=Commands, add_completion=with_completion, pretty_exceptions_enable=False, rich_markup_mode=None,
    )  # fmt: skip
    group.callback(invoke_without_command=True)(_root)
    return group


def build(arguments: Sequence[str]) -> Any:
    """The application, ready to run; the options that install completion are left out where a command is named."""
    return get_command(app(with_completion=not (arguments and arguments[0] in NAMES)))


def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> int:
    """GPU memory planner for LLM fine-tuning: will it fit, on which card, and what to change."""
    if version:
        from planner import __version__
        from planner.render import terminal

        terminal.write([f"qplan {__version__}"])
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        raise QplanError(
            f"no command was given; it must be one of {', '.join(NAMES)}",
            hint="qplan estimate meta-llama/Llama-2-70b-hf --rank 16, or qplan --help",
        )
    return 0


def explain(error: Any, arguments: Sequence[str]) -> tuple[str, str]:
    """
    What the parser found, as a message and a hint.

    Args:
        error: What it raised.
        arguments: What was typed.
    """
    command = arguments[0] if arguments and arguments[0] in NAMES else None
    help_ = f"qplan {command} --help" if command else "qplan --help"
    option = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption":
        import difflib

        near = difflib.get_close_matches(str(option), _options(error.ctx), n=2) if error.ctx else []
        known = f"did you mean {' or '.join(near)}? " if near else ""
        return f"there is no option {option}", f"{known}{help_} lists them"
    if type(error).__name__ == "MissingParameter":
        return (
            "MODEL is missing; it must be a bundled id, a Hub id, a folder or a config.json",
            "qplan models lists what is bundled",
        )
    if command is None and arguments and not arguments[0].startswith("-"):
        import difflib

        near = difflib.get_close_matches(arguments[0], NAMES, n=1, cutoff=0.5)
        hint = f"did you mean qplan {near[0]}?" if near else f"to plan a model: qplan estimate {arguments[0]}"
        return f"there is no command {arguments[0]}; it must be one of {', '.join(NAMES)}", hint
    message = str(error.format_message()).rstrip(".")
    return message[:1].lower() + message[1:], help_


def _options(ctx: Any) -> list[str]:
    return [option for param in ctx.command.get_params(ctx) for option in (*param.opts, *param.secondary_opts)]
