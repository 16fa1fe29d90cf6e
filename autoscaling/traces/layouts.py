"""The column layouts of public request traces, and which one a header belongs to."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from raylane.autoscaling.traces.clock import PER_S, Unit
from raylane.cluster.errors import UsageError

LayoutName = Literal["plain", "azure", "burstgpt", "bailian", "mooncake", "servegen"]


@dataclass(frozen=True)
class Layout:
    """Where the columns are. Further columns are allowed anywhere and ignored."""

    at: str
    unit: Unit
    """Of times that are numbers; times that are dates need none."""
    input_tokens: str
    output_tokens: str
    starts_at_first: bool
    """Whether the clock is set to 0 at the first request; otherwise the file's own zero stays, unless it is far off
    (clock.FAR_S)."""
    model: str | None = None
    sure: bool = False
    """Whether the columns are those of no other format, so that the unit is beyond doubt."""
    marks: tuple[str, ...] = ()
    """Columns that are not read and tell the layout from others."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns a file must have."""
        needed = (self.at, self.input_tokens, self.output_tokens)
        return needed if self.model is None else (*needed, self.model)


LAYOUTS: Mapping[LayoutName, Layout] = MappingProxyType(
    {
        "plain": Layout("t_s", "s", "input_tokens", "output_tokens", starts_at_first=False, sure=True),
        # Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and ...2024.md. The files of 2023 have no zone and
        # seven decimals, those of 2024 have +00:00, and no decimals on a whole second.
        "azure": Layout("TIMESTAMP", "s", "ContextTokens", "GeneratedTokens", starts_at_first=True),
        # HPMLL/BurstGPT, README.md. The third file has two more columns, Session ID and Elapsed time, in the middle,
        # and its seconds begin at 19,440,110.
        "burstgpt": Layout(
            "Timestamp", "s", "Request tokens", "Response tokens", starts_at_first=True, model="Model", sure=True
        ),
        # alibaba-edu/qwen-bailian-usagetraces-anon: Mooncake's columns and more, and seconds.
        "bailian": Layout(
            "timestamp", "s", "input_length", "output_length", starts_at_first=False, marks=("chat_id", "turn")
        ),
        # kvcache-ai/Mooncake, FAST25-release/traces: one JSON object a line.
        "mooncake": Layout("timestamp", "ms", "input_length", "output_length", starts_at_first=False),
        # alibaba/ServeGen: a request's timestamp in seconds and its token counts by the names its generator uses.
        "servegen": Layout("timestamp", "s", "input_tokens", "output_tokens", starts_at_first=False),
    }
)


def layout_named(name: str) -> Layout:
    """The layout a user asked for by name. Raises UsageError with the names there are."""
    for known, layout in LAYOUTS.items():
        if known == name:
            return layout
    raise UsageError(f"unknown trace layout {name!r}; there are {', '.join(LAYOUTS)}")


def recognised(path: Path, header: Collection[str]) -> LayoutName:
    """The layout whose columns the header has. Raises UsageError naming the file and its columns."""
    for name, layout in LAYOUTS.items():
        if all(spelled(column, header) for column in (*layout.columns[1:], *layout.marks)) and _at(layout, header):
            return name
    if {"t_s", "rate_rps"} <= set(header):
        raise UsageError(f"{path}: line 1: holds rates, not requests (columns {', '.join(header)})")
    known = "; ".join(f"{name}: {', '.join(layout.columns)}" for name, layout in LAYOUTS.items())
    raise UsageError(f"{path}: line 1: columns {', '.join(header)} fit no known layout ({known})")


def as_spelled(layout: Layout, header: Collection[str]) -> Layout:
    """The layout with the file's own spelling of its columns, and with the unit that the name of its times says.

    A column that is not there keeps its name.
    """
    at, unit = _at(layout, header) or (layout.at, None)
    return replace(
        layout,
        at=at,
        unit=unit or layout.unit,
        sure=layout.sure or unit is not None,
        input_tokens=spelled(layout.input_tokens, header) or layout.input_tokens,
        output_tokens=spelled(layout.output_tokens, header) or layout.output_tokens,
        model=None if layout.model is None else spelled(layout.model, header) or layout.model,
    )


def spelled(column: str, header: Collection[str]) -> str | None:
    """The column as the header spells it: case, blanks, hyphens and underscores may differ. None if it is not there."""
    if column in header:
        return column
    return next((name for name in header if _plain(name) == _plain(column)), None)


def _plain(name: str) -> str:
    return re.sub(r"[ _-]+", "_", name.strip().casefold())


def _at(layout: Layout, header: Collection[str]) -> tuple[str, Unit | None] | None:
    """The column of times and the unit that its name says: t_ms and timestamp_us will do for t_s and timestamp."""
    if found := spelled(layout.at, header):
        return found, None
    stem = layout.at.removesuffix("_s")
    named = ((spelled(f"{stem}_{unit}", header), unit) for unit in PER_S)
    return next(((found, unit) for found, unit in named if found), None)
