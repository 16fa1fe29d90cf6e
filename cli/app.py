"""The command line put together: one command imported, the others by name; errors as messages and exit statuses."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from raylane.cli.commands import COMMANDS
from raylane.cli.interrupts import Interruptions, leave
from raylane.cli.output import prepare_output
from raylane.cluster.errors import RaylaneError

CLICK_ERROR: Any = typer.BadParameter.__mro__[2]  # ClickException, of click or of typer's own copy of it
INTERRUPTED = 130


def show_version(wanted: bool) -> None:
    """Print which raylane and which Ray this is."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"raylane {version('raylane')} (Ray {version('ray')})")
        raise typer.Exit


def options(
    _: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve large language models on your own GPUs with Ray, and know what each token costs."""


def build_app(words: Sequence[str] | None = None) -> typer.Typer:
    """The command line for these words (default: the process's own): only the command that they name is imported."""
    given = sys.argv[1:] if words is None else words
    named = next((word for word in given if not word.startswith("-")), None)
    completing = "_RAYLANE_COMPLETE" in os.environ  # the words are those of a shell's line then
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=options,
    )
    for name, place in COMMANDS.items():
        if name != named and not completing:
            app.command(name, help=place.help)(not_imported)
            continue
        found = getattr(import_module(f"raylane.cli.{place.module}"), place.name)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def not_imported() -> None:
    """Stands for a command that is not called."""


def run(app: typer.Typer) -> NoReturn:
    """Run the command and end the process. Exit status 0: done, 1: failed, 2: wrong input, 130: interrupted."""
    prepare_output()
    with Interruptions() as interruptions:
        status = status_of(app, interruptions)
    leave(status, interruptions.seen)


def status_of(app: typer.Typer, interruptions: Interruptions) -> int:
    """Run the command; its exit status, after its error was printed."""
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except RaylaneError as error:
        complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except CLICK_ERROR as error:  # a wrong option or argument
        from raylane.cluster.redact import redacted

        error.message = redacted(error.message)
        error.show()
        return int(error.exit_code)
    except BrokenPipeError:  # whoever read the output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a disk that is full, a folder that is gone: nothing a traceback would explain
        complain(str(error))
        return 1
    except Exception:
        if interruptions.seen is None:
            raise
        return INTERRUPTED  # an import or a library made something else of the interrupt


def complain(message: str) -> None:
    """One message on stderr, without the secrets in it."""
    from rich.console import Console
    from rich.markup import escape

    from raylane.cluster.redact import redacted

    Console(stderr=True).print(f"[red]error:[/red] {escape(redacted(message))}", highlight=False, soft_wrap=True)
