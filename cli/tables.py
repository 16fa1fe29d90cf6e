"""Where commands print their tables."""

import os
import sys

from rich.console import Console

PIPED_WIDTH = 200


def table_console() -> Console:
    """Standard output, as wide as the terminal. Without one (a pipe, a file) nothing is cut to 80 columns, unless
    COLUMNS says how wide."""
    free = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PIPED_WIDTH if free else None)
