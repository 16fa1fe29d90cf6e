"""Tables for the terminal, and where commands print them."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table

PIPED_WIDTH = 200
ANY_WIDTH = 10_000


class WholeTable(Table):
    """A table of which nothing is cut off: on a narrow terminal its columns stand closer, and cells are folded before
    the words of headings are."""

    def add_column(self, *args: Any, **kwargs: Any) -> None:
        super().add_column(*args, **{"overflow": "fold", **kwargs})

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        free = options.update(max_width=ANY_WIDTH)
        if self.__rich_measure__(console, free).minimum > options.max_width:
            self.padding = (0, 1, 0, 0)
            needed = [self._measure_column(console, free, column).maximum - 1 for column in self.columns]
            least = [least_width(column, width) for column, width in zip(self.columns, needed, strict=True)]
            room = options.max_width - len(self.columns)
            lines = len(self.columns) + 1
            self.box = None if self.box is None or sum(least) + lines > room else box.SIMPLE_HEAD
            room -= 0 if self.box is None else lines
            for column, width in zip(self.columns, widths(needed, least, room), strict=True):
                column.width, column.no_wrap = width, False
        yield from super().__rich_console__(console, options)


def least_width(column: Column, needed: int) -> int:
    """What a column should have: all that it needs where it does not wrap, else room for the words of its heading."""
    if column.no_wrap:
        return needed
    return max([column.min_width or 1, *map(len, str(column.header).split())])


def widths(needed: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Widths of columns that share the room: at least `least` if that fits, then what each needs as far as there is
    some left, small needs first."""
    floors = list(least) if sum(least) <= room else [1] * len(least)
    found, left = floors, room - sum(floors)
    order = sorted(range(len(needed)), key=lambda i: needed[i] - floors[i])
    for place, i in enumerate(order):
        more = max(0, min(needed[i] - floors[i], left // (len(order) - place)))
        found[i] += more
        left -= more
    return found


def table_console() -> Console:
    """Standard output, as wide as the terminal. Without one (a pipe, a file) nothing is cut to 80 columns, unless
    COLUMNS says how wide."""
    free = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PIPED_WIDTH if free else None)
