"""Two ways to the same engine, as a table with medians and ranges."""

from collections.abc import Sequence

from raylane.benchmarks.pairs import Comparison
from studies.markdown import table


def comparison_table(comparisons: Sequence[Comparison], second: str) -> str:
    """A Markdown table of the bare engine beside the second way, which is named in the headings."""
    through = f"through {second}"
    headings = ("concurrency", "TTFT p50 bare, ms", f"{through}, ms", "added, ms", "tok/s bare", through, "ratio")
    rows = [
        (
            str(c.load.concurrency),
            *(str(c.of(way, lambda f: f.ttft_p50_ms)) for way in (0, 1)),
            str(c.added_ttft_ms()),
            *(str(c.of(way, lambda f: f.output_tokens_per_s)) for way in (0, 1)),
            str(c.throughput_ratio()),
        )
        for c in comparisons
    ]
    return table(headings, rows)
