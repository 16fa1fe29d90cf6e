"""Tables in Markdown, as every study prints them."""

from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose first columns are text and whose others are numbers, to the right."""
    rule = ["---"] * text_columns + ["---:"] * (len(headings) - text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, rule, *rows))
