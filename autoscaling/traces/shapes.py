"""Synthetic load shapes that a study or a command names in YAML, and the traces made from them.

    shape: {kind: step, base_rps: 1, peak_rps: 5, before_s: 600, hold_s: 1200, after_s: 600}

Shapes differ in their rate curve; how bursty arrivals are and how long requests are is said the same way for all.
"""

from typing import Annotated, Any, Literal, Self, assert_never

import numpy as np
from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from raylane.autoscaling.traces.arrivals import RateCurve, arrivals_s
from raylane.autoscaling.traces.lengths import Lengths, drawn_lengths
from raylane.autoscaling.traces.trace import Trace
from raylane.cluster.errors import UsageError
from raylane.cluster.strict import StrictModel, explain

_DAY_S = 86_400.0
_DIURNAL_STEP_S = 600.0
_DECAY_POINTS = 60


class _Load(StrictModel):
    """What every shape has beside its rate curve."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str | None = Field(None, min_length=1)
    """Name of the trace; the kind by default."""
    model: str | None = Field(None, min_length=1)
    """Which model the requests are for."""
    cv: float = Field(1.0, gt=0.0, le=20.0)
    """Coefficient of variation of the gaps: 1 is Poisson (independent users), recorded traces have 1.1 to 3."""
    lengths: Lengths = Lengths()


class Constant(_Load):
    """One rate throughout."""

    kind: Literal["constant"] = "constant"
    rps: PositiveFloat
    duration_s: PositiveFloat = 3600.0


class _TwoRates(_Load):
    base_rps: NonNegativeFloat
    """The low rate; 0 is silence."""
    peak_rps: PositiveFloat

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.base_rps > self.peak_rps:
            raise ValueError(f"base_rps {self.base_rps} is above peak_rps {self.peak_rps}")
        return self


class StepShape(_TwoRates):
    """From base to peak at once, and back at once. `after_s: 0` stays up to the end."""

    kind: Literal["step"] = "step"
    before_s: PositiveFloat = 900.0
    hold_s: PositiveFloat = 1800.0
    after_s: NonNegativeFloat = 900.0


class Ramp(_TwoRates):
    """Up in a straight line, a plateau, down in a straight line."""

    kind: Literal["ramp"] = "ramp"
    before_s: PositiveFloat = 600.0
    rise_s: PositiveFloat = 1200.0
    hold_s: NonNegativeFloat = 600.0
    fall_s: PositiveFloat = 1200.0
    after_s: NonNegativeFloat = 600.0


class FlashCrowd(_TwoRates):
    """A sudden rise that dies away exponentially: a link on a busy page."""

    kind: Literal["flash_crowd"] = "flash_crowd"
    before_s: PositiveFloat = 900.0
    rise_s: PositiveFloat = 30.0
    hold_s: NonNegativeFloat = 300.0
    decay_s: PositiveFloat = 600.0
    """After this long the excess over the base is down to 1/e."""
    after_s: PositiveFloat = 3600.0
    """How long it is watched from the beginning of the decay."""


class Lull(_TwoRates):
    """Peak load that pauses at the base rate and comes back: a network gone for a while, a lunch break."""

    kind: Literal["lull"] = "lull"
    before_s: PositiveFloat = 1200.0
    fall_s: PositiveFloat = 60.0
    hold_s: NonNegativeFloat = 1200.0
    rise_s: PositiveFloat = 60.0
    after_s: PositiveFloat = 1200.0


class Diurnal(_TwoRates):
    """Days with a cosine between the base rate at night and the peak rate, and calmer weekends."""

    kind: Literal["diurnal"] = "diurnal"
    days: PositiveInt = 7
    peak_hour: float = Field(14.0, ge=0.0, lt=24.0)
    weekend_factor: NonNegativeFloat = 1.0
    """Rate of Saturdays and Sundays as a share of weekdays; 1 makes all days alike."""
    first_weekday: int = Field(0, ge=0, le=6)
    """Which day the trace begins with: 0 is Monday."""


Shape = Annotated[Constant | StepShape | Ramp | FlashCrowd | Lull | Diurnal, Field(discriminator="kind")]

_SHAPES: TypeAdapter[Constant | StepShape | Ramp | FlashCrowd | Lull | Diurnal] = TypeAdapter(Shape)


def shape_from_data(data: Any, origin: str) -> Shape:
    """A shape from plain data (a YAML mapping, say). Raises UsageError, each line beginning with `origin`."""
    try:
        return _SHAPES.validate_python(data)
    except ValidationError as error:
        raise UsageError("\n".join(explain(error, origin))) from error


def generate(shape: Shape, rng: np.random.Generator) -> Trace:
    """A trace of this shape; the same generator state gives the same trace."""
    curve = curve_of(shape)
    at_s = arrivals_s(curve, shape.cv, rng)
    inputs, outputs = drawn_lengths(shape.lengths, len(at_s), rng)
    return Trace(
        name=shape.name or shape.kind,
        model=shape.model,
        at_s=at_s,
        input_tokens=inputs,
        output_tokens=outputs,
        source=f"generated: {shape.kind}",
        duration_s=curve.duration_s,
    )


def curve_of(shape: Shape) -> RateCurve:
    """The expected rate over time."""
    match shape:
        case Constant():
            return _pieces(shape.rps, [(shape.duration_s, shape.rps)])
        case StepShape(base_rps=base, peak_rps=peak):
            return _pieces(base, [(shape.before_s, base), (0, peak), (shape.hold_s, peak), *_back(shape.after_s, base)])
        case Ramp(base_rps=base, peak_rps=peak):
            up = [(shape.before_s, base), (shape.rise_s, peak), (shape.hold_s, peak)]
            return _pieces(base, [*up, (shape.fall_s, base), (shape.after_s, base)])
        case Lull(base_rps=base, peak_rps=peak):
            down = [(shape.before_s, peak), (shape.fall_s, base), (shape.hold_s, base)]
            return _pieces(peak, [*down, (shape.rise_s, peak), (shape.after_s, peak)])
        case FlashCrowd():
            return _flash_crowd(shape)
        case Diurnal():
            return _diurnal(shape)
        case _:
            assert_never(shape)


def _back(after_s: float, rate_rps: float) -> list[tuple[float, float]]:
    return [(0.0, rate_rps), (after_s, rate_rps)] if after_s else []


def _pieces(start_rps: float, pieces: list[tuple[float, float]]) -> RateCurve:
    """Straight lines, each given by how long it takes and the rate it ends with."""
    lengths_s, rates_rps = zip(*pieces, strict=True)
    return RateCurve(np.concatenate([[0.0], np.cumsum(lengths_s)]), np.array([start_rps, *rates_rps], dtype=np.float64))


def _flash_crowd(shape: FlashCrowd) -> RateCurve:
    base, peak = shape.base_rps, shape.peak_rps
    step_s = shape.after_s / _DECAY_POINTS
    ages_s = step_s * np.arange(1, _DECAY_POINTS + 1)
    decay = [(step_s, base + (peak - base) * float(left)) for left in np.exp(-ages_s / shape.decay_s)]
    return _pieces(base, [(shape.before_s, base), (shape.rise_s, peak), (shape.hold_s, peak), *decay])


def _diurnal(shape: Diurnal) -> RateCurve:
    in_day_s = np.arange(0.0, _DAY_S + _DIURNAL_STEP_S / 2.0, _DIURNAL_STEP_S)
    share = (1.0 + np.cos(2.0 * np.pi * (in_day_s / _DAY_S - shape.peak_hour / 24.0))) / 2.0
    weekday_rps = shape.base_rps + (shape.peak_rps - shape.base_rps) * share
    days = np.arange(shape.days)
    weekend = (days + shape.first_weekday) % 7 >= 5
    factors = np.where(weekend, shape.weekend_factor, 1.0)
    return RateCurve(
        np.concatenate([day * _DAY_S + in_day_s for day in days]),
        np.concatenate([factor * weekday_rps for factor in factors]),
    )
