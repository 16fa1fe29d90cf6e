"""What the registry says of one rule: how to build it, how it shares the fleet, and what may be swept and tuned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from raylane.autoscaling.share import Sharing

Space = Mapping[str, Sequence[Any]]
"""Values to draw from, by knob."""


@dataclass(frozen=True)
class RuleEntry:
    """One rule that can be chosen by name."""

    rule: type
    description: str
    sharing: Sharing
    """How its proposals are fitted into the fleet, live and in the lab, unless a config or a plan says otherwise."""
    knob: str
    """The knob that makes it more saving or safer."""
    sweep: Sequence[Any]
    """Values of that knob, from saving to safe."""
    space: Space = field(default_factory=dict)
    """Values to draw from when the rule is tuned."""
    preset: Mapping[str, Any] = field(default_factory=dict)
    """Knobs that differ from the class's defaults under this name."""
    deployable: bool = True
    """False: for replays and the study alone; no policy of a deployment config."""

    @property
    def knobs(self) -> tuple[str, ...]:
        return tuple(knob.name for knob in fields(self.rule))


SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25)
"""Shares of what a replica holds at its SLO, for tuning."""
SHARE_LEVELS = (0.85, 0.7, 0.55, 0.4, 0.25, 0.15)
"""The same for a sweep."""
