"""The `raylane` command: registers the commands and turns errors into messages and exit statuses."""

import signal
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from raylane.cli.bench import bench
from raylane.cli.calibrate import calibrate_command
from raylane.cli.demo import demo
from raylane.cli.deploy import delete, deploy, schema
from raylane.cli.engine import engine
from raylane.cli.export import export
from raylane.cli.move import move
from raylane.cli.node import cluster, node
from raylane.cli.plan import plan
from raylane.cli.profiles import profiles_command
from raylane.cli.replay import replay_command
from raylane.cli.report import report
from raylane.cli.scaling import scaling
from raylane.cli.status import status
from raylane.cli.topology import topology
from raylane.cluster.errors import RaylaneError
from raylane.cluster.redact import redacted

CLICK_ERROR: Any = typer.BadParameter.__mro__[2]  # ClickException, of click or of typer's own copy of it

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    """Print which raylane and which Ray this is."""
    if wanted:
        typer.echo(f"raylane {version('raylane')} (Ray {version('ray')})")
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve large language models on your own GPUs with Ray, and know what each token costs."""


for command in (demo, deploy, status, move, scaling, delete, schema, topology, plan, bench, report):
    app.command()(command)
app.command("calibrate")(calibrate_command)
app.command("profiles")(profiles_command)
app.command("replay")(replay_command)
app.add_typer(node, name="node")
app.add_typer(cluster, name="cluster")
app.add_typer(export, name="export")
app.add_typer(engine, name="engine")


def main() -> None:
    """Run the command line. Exit status 0: done, 1: failed, 2: wrong input, 130: interrupted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that contexts clean up
    try:
        sys.exit(app(standalone_mode=False))
    except RaylaneError as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(redacted(str(error)))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except CLICK_ERROR as error:  # a wrong option or argument
        error.message = redacted(error.message)
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
