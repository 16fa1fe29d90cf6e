"""The column layouts of public request traces, and which one a header belongs to."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from raylane.cluster.errors import UsageError

LayoutName = Literal["plain", "azure", "burstgpt", "mooncake", "servegen"]


@dataclass(frozen=True)
class Layout:
    """Where the columns are. Further columns are allowed anywhere and ignored."""

    at: str
    clock: Literal["s", "ms", "iso"]
    input_tokens: str
    output_tokens: str
    starts_at_first: bool
    """Whether the clock is set to 0 at the first request; otherwise the file's own zero stays, unless it is far off
    (readers.FAR)."""
    model: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns a file must have."""
        needed = (self.at, self.input_tokens, self.output_tokens)
        return needed if self.model is None else (*needed, self.model)


LAYOUTS: Mapping[LayoutName, Layout] = MappingProxyType(
    {
        "plain": Layout("t_s", "s", "input_tokens", "output_tokens", starts_at_first=False),
        # Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and ...2024.md. The files of 2023 have no zone and
        # seven decimals, those of 2024 have +00:00, and no decimals on a whole second.
        "azure": Layout("TIMESTAMP", "iso", "ContextTokens", "GeneratedTokens", starts_at_first=True),
        # HPMLL/BurstGPT, README.md. The third file has two more columns, Session ID and Elapsed time, in the middle,
        # and its seconds begin at 19,440,110.
        "burstgpt": Layout("Timestamp", "s", "Request tokens", "Response tokens", starts_at_first=True, model="Model"),
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
        if set(layout.columns) <= set(header):
            return name
    if {"t_s", "rate_rps"} <= set(header):
        raise UsageError(f"{path}: line 1: holds rates, not requests (columns {', '.join(header)})")
    known = "; ".join(f"{name}: {', '.join(layout.columns)}" for name, layout in LAYOUTS.items())
    raise UsageError(f"{path}: line 1: columns {', '.join(header)} fit no known layout ({known})")
