"""The command `masklet`: arguments in, an exit code out.

Exit codes: 0 done, 1 a `MaskletError` (or a bug), 2 the command was not understood, 130 Ctrl-C. Each command
is a function in another module; here they are put together, and every exception of theirs becomes a message.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from masklet import __version__
from masklet.apps import auto, bench, export, inspect, manage, quantize, segment, terminal, track
from masklet.errors import MaskletError

DEBUG = "MASKLET_DEBUG"
MODELS = "Models"
NUMBERS = "Other engines and numbers"


class Commands(TyperGroup):
    """The group of all commands; what they raise on purpose ends here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """`--debug` may stand anywhere: it is mostly added to the end of a command that failed."""
        own = args[: args.index("--")] if "--" in args else args
        if "--debug" in own:
            args = ["--debug", *(arg for arg in own if arg != "--debug"), *args[len(own) :]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; errors of ours and Ctrl-C become a message and an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            terminal.note("Interrupted.")
            raise typer.Exit(130) from None
        except MaskletError as error:
            if _wants_debug(ctx.params):
                _print_traceback(error)
            terminal.error(str(error))
            raise typer.Exit(1) from None
        except MemoryError as error:
            if _wants_debug(ctx.params):
                _print_traceback(error)
            terminal.error("not enough memory; try a smaller picture, model or --image-size.")
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Results go to stdout, messages to stderr. Exit codes: 0 done, 1 error, 2 usage, 130 Ctrl-C.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        terminal.write(f"masklet {__version__}\n")
        raise typer.Exit


@app.callback()
def masklet(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help=f"Show the traceback of an error; so does the variable {DEBUG}=1."),
    ] = False,
) -> None:
    """Segment Anything on pictures and video, from the published checkpoints, without PyTorch."""


app.command()(segment.segment)
app.command(epilog=auto.EXAMPLES)(auto.auto)
app.command(epilog=track.EXAMPLES)(track.track)
app.command(rich_help_panel=MODELS)(manage.models)
app.command(rich_help_panel=MODELS)(manage.pull)
app.command(rich_help_panel=MODELS)(manage.info)
app.command(rich_help_panel=MODELS)(quantize.quantize)
app.command(rich_help_panel=MODELS)(manage.cache)
app.command(rich_help_panel=NUMBERS)(bench.bench)
app.command(rich_help_panel=NUMBERS)(export.export)
app.command(rich_help_panel=NUMBERS)(inspect.dump)
app.command(rich_help_panel=NUMBERS)(inspect.compare)


def main() -> NoReturn:
    """The entry point of the command `masklet`."""
    try:
        get_command(app)(prog_name="masklet")
    except KeyboardInterrupt:  # before or after the command itself
        sys.exit(130)
    except MaskletError as error:  # --version that cannot be written
        terminal.error(str(error))
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last line of defence: anything else is a bug of ours
        _print_traceback(error)
        terminal.error(
            f"this is a bug in masklet {__version__} ({type(error).__name__}). Please report it with the "
            f"lines above, the command that you typed, and: Python {platform.python_version()}, "
            f"{platform.platform()}."
        )
        sys.exit(1)
    sys.exit(0)


def _wants_debug(parameters: dict[str, Any]) -> bool:
    return bool(parameters.get("debug")) or os.environ.get(DEBUG, "") not in ("", "0")


def _print_traceback(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error)
