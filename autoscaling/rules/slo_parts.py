"""raylane's own rule with one part switched off or on, for the study's ablation: no policies of a deployment. Pure."""

from dataclasses import replace
from typing import Any

from raylane.autoscaling.rules.entry import RuleEntry
from raylane.autoscaling.rules.slo import ENTRY


def _part(description: str, **preset: Any) -> RuleEntry:
    space = {knob: values for knob, values in ENTRY.space.items() if knob not in preset}
    return replace(ENTRY, description=description, space=space, preset=preset, deployable=False)


WITH_FORECAST = _part("raylane's own with the trend over the cold start", forecast=True)
NO_LEARNING = _part("raylane's own with the profile's speed as it is", learning=0.0)
NO_BAND = _part("raylane's own shrinking as soon as the load fits on one fewer", shrink_band=0.0)
NO_MARGIN = replace(
    _part("raylane's own without the margin for bursts", burst_margin=0.0),
    knob="target_load",
    sweep=(1.0, 0.9, 0.85, 0.8, 0.7, 0.6),
)
NO_HOLD = _part("raylane's own shrinking without looking back", hold_s=0.0)
NO_CONFIDENCE = _part("raylane's own believing every short rate as it is", confidence=0.0)
