"""Every rule by name: how to build it, which knob trades GPU-hours for attainment, and what may be tuned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from raylane.autoscaling.policy import Wisher
from raylane.autoscaling.rules.apa import Apa
from raylane.autoscaling.rules.fixed import Fixed
from raylane.autoscaling.rules.kpa import Kpa
from raylane.autoscaling.rules.planner import Planner
from raylane.autoscaling.rules.queue import QueueOnly
from raylane.autoscaling.rules.ray_default import RayDefault
from raylane.autoscaling.rules.utilization import Utilization
from raylane.autoscaling.slo_rule import SloRule
from raylane.cluster.errors import UsageError

Space = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class RuleEntry:
    """One rule that can be chosen by name."""

    rule: type
    description: str
    knob: str
    """The knob that makes it more saving or safer."""
    sweep: Sequence[Any]
    """Values of that knob, from saving to safe."""
    space: Space = field(default_factory=dict)
    """Values to draw from when the rule is tuned."""
    preset: Mapping[str, Any] = field(default_factory=dict)
    """Knobs that differ from the class's defaults under this name."""

    @property
    def knobs(self) -> tuple[str, ...]:
        return tuple(knob.name for knob in fields(self.rule))


SHARES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25)
SLO_SPACE: Space = {
    "burst_margin": (1.0, 1.5, 2.0, 3.0),
    "target_load": (0.7, 0.8, 0.9, 1.0),
    "confidence": (1.0, 2.0, 3.0),
    "hold_s": (120.0, 180.0, 300.0, 450.0, 600.0),
    "shrink_band": (0.05, 0.15, 0.3, 0.5),
    "forecast": (True, False),
    "learning": (0.5, 1.0, 1.5, 2.0),
    "misses": (0.5, 1.0),
}
RAY_SPACE: Space = {
    "target_share": SHARES,
    "upscale_delay_s": (0.0, 5.0, 15.0, 30.0),
    "downscale_delay_s": (60.0, 120.0, 300.0, 600.0, 1200.0),
    "look_back_s": (10.0, 30.0, 60.0),
}
UTILIZATION_SPACE: Space = {
    "high": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    "low": (0.1, 0.2, 0.3, 0.4, 0.5),
    "cooldown_s": (60.0, 180.0, 300.0, 900.0),
    "cooldown_on": ("both", "shrink"),
    "step": (1, 2),
    "window_s": (15.0, 60.0, 180.0),
}
QUEUE_SPACE: Space = {
    "kv_limit": (0.6, 0.7, 0.8, 0.9),
    "queue_limit": (3.0, 5.0, 8.0),
    "spare_kv": (0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    "spare_queue": (1.0, 2.0, 3.0),
    "every_s": (15.0, 30.0, 60.0),
}
KPA_SPACE: Space = {
    "target_share": SHARES,
    "stable_s": (60.0, 120.0, 180.0, 300.0),
    "panic_s": (10.0, 30.0, 60.0),
    "panic_threshold": (1.2, 1.5, 2.0, 3.0),
    "scale_down_delay_s": (0.0, 60.0, 300.0, 600.0),
}
APA_SPACE: Space = {
    "kv_target": (0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8),
    "waiting_target": (1.0, 2.0, 5.0),
    "scale_down_s": (60.0, 180.0, 300.0, 600.0),
    "window_s": (15.0, 30.0, 60.0, 180.0),
}
PLANNER_SPACE: Space = {
    "plan_every_s": (30.0, 60.0, 180.0),
    "forecast": ("constant", "linear"),
    "target_load": (1.0, 0.9, 0.8, 0.7, 0.6, 0.5),
    "down_sensitivity": (0.2, 0.4, 0.6, 0.8),
}
MARGINS = (0.0, 0.5, 1.0, 1.5, 2.5, 4.0)
SHARE_LEVELS = (0.85, 0.7, 0.55, 0.4, 0.25, 0.15)


def _slo(description: str, **preset: object) -> RuleEntry:
    space = {knob: values for knob, values in SLO_SPACE.items() if knob not in preset}
    if "burst_margin" in preset:
        return RuleEntry(SloRule, description, "target_load", (1.0, 0.9, 0.85, 0.8, 0.7, 0.6), space, preset)
    return RuleEntry(SloRule, description, "burst_margin", MARGINS, space, preset)


RULES: dict[str, RuleEntry] = {
    "slo": _slo("raylane's own: enough replicas for the load that arrives now, with a margin for bursts"),
    "slo-with-forecast": _slo("raylane's own with the trend over the cold start", forecast=True),
    "slo-no-learning": _slo("raylane's own with the profile's speed as it is", learning=0.0),
    "slo-no-band": _slo("raylane's own shrinking as soon as the load fits on one fewer", shrink_band=0.0),
    "slo-no-margin": _slo("raylane's own without the margin for bursts", burst_margin=0.0),
    "slo-no-hold": _slo("raylane's own shrinking without looking back", hold_s=0.0),
    "slo-no-confidence": _slo("raylane's own believing every short rate as it is", confidence=0.0),
    "fixed": RuleEntry(Fixed, "a fixed number of replicas", "replicas", (1, 2, 3, 4, 5, 6, 8, 10, 12)),
    "ray-default": RuleEntry(
        RayDefault, "Ray Serve's default, as shipped", "target_ongoing", (32.0, 16.0, 8.0, 4.0, 2.0, 1.0)
    ),
    "ray-tuned": RuleEntry(
        RayDefault,
        "Ray Serve's default aiming at a share of the profile's concurrency",
        "target_share",
        SHARE_LEVELS,
        RAY_SPACE,
        {"target_share": 0.7},
    ),
    "utilization": RuleEntry(
        Utilization,
        "GPU utilisation as NVML gives it: above 70 % one more, below 40 % one fewer, 15 min cooldown",
        "high",
        (0.99, 0.95, 0.9, 0.8, 0.7, 0.6),
        UTILIZATION_SPACE,
    ),
    "utilization-effective": RuleEntry(
        Utilization,
        "work over capacity: above 70 % one more, below 40 % one fewer, 15 min cooldown",
        "high",
        (0.9, 0.8, 0.7, 0.6, 0.5, 0.4),
        UTILIZATION_SPACE,
        {"effective": True},
    ),
    "queue": RuleEntry(
        QueueOnly,
        "room in queues and KV caches, as llm-d's first saturation rule",
        "spare_kv",
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.7),
        QUEUE_SPACE,
    ),
    "kpa": RuleEntry(
        Kpa, "requests per replica with a panic window, as Knative's", "target_share", SHARE_LEVELS, KPA_SPACE
    ),
    "apa": RuleEntry(
        Apa,
        "in proportion to KV use and waiting requests, as AIBrix's",
        "kv_target",
        (0.65, 0.5, 0.35, 0.2, 0.1, 0.05),
        APA_SPACE,
    ),
    "planner": RuleEntry(
        Planner,
        "a floor from a forecast and steps from the queue, as Dynamo's planner",
        "target_load",
        (0.9, 0.8, 0.7, 0.6, 0.5, 0.35),
        PLANNER_SPACE,
    ),
}


def build_rule(name: str, **knobs: object) -> Wisher:
    """The rule of this name; knobs that are not given keep its preset or default.

    UsageError for an unknown rule, an unknown knob or a value that the knob cannot have.
    """
    entry = RULES.get(name)
    if entry is None:
        raise UsageError(f"rule {name!r} is unknown; there are {', '.join(RULES)}")
    check_knobs(f"rule {name!r}", entry.rule, knobs)
    rule: Wisher = entry.rule(**{**entry.preset, **knobs})
    return rule


def check_knobs(owner: str, rule: type, knobs: Mapping[str, object]) -> None:
    """UsageError, beginning with `owner`, for a knob that the rule has no field for, and for a value that the field's
    annotation does not allow: another kind, out of its bounds, NaN or infinite."""
    known = _knob_types(rule)
    for knob, value in knobs.items():
        if knob not in known:
            raise UsageError(f"{owner} has no knob {knob!r}; it has {', '.join(known)}")
        try:
            known[knob].validate_python(value)
        except ValidationError as error:
            wanted = " or ".join(dict.fromkeys(item["msg"].removeprefix("Input should be ") for item in error.errors()))
            raise UsageError(f"{owner}: knob {knob} should be {wanted} (got {value!r})") from error


@lru_cache
def _knob_types(rule: type) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(rule, include_extras=True)
    exact = ConfigDict(strict=True, allow_inf_nan=False)
    return {knob.name: TypeAdapter(hints[knob.name], config=exact) for knob in fields(rule)}
