"""The `raylane` command: registers the commands and turns errors into messages and exit statuses."""

import signal
import sys

import typer
from rich.console import Console

from raylane.cli.bench import bench
from raylane.cli.demo import demo
from raylane.cli.deploy import delete, deploy, schema, status
from raylane.cli.report import report
from raylane.cli.topology import topology
from raylane.cluster.errors import RaylaneError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve large language models on your own GPUs with Ray, and know what each token costs.",
)
for command in (demo, deploy, status, delete, schema, topology, bench, report):
    app.command()(command)


def main() -> None:
    """Run the command line. Exit status 0: done, 1: failed, 2: wrong input, 130: interrupted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that contexts clean up
    try:
        app()
    except RaylaneError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
