"""What a GPU hour, a token and a request cost, and what is wasted. Pure; dollars are USD.

Owned:  $/GPU-h = CRF x (capex - resid x capex / (1 + w)^n) / 8760 + power + colocation + O&M
Tokens: $/Mtok  = $/GPU-h x GPUs x 1e6 / (tok/s at the SLO x 3600 x U)
U is load / capacity at the SLO: the share of what the GPUs could serve that is asked of them. It is not the
utilisation that nvidia-smi shows.
"""

import math
from dataclasses import dataclass

HOURS_PER_YEAR = 8760.0
MONTHS_PER_YEAR = 12.0


@dataclass(frozen=True, slots=True)
class OwnedGpu:
    """One bought GPU with its share of server, network, storage and installation."""

    capex_usd: float
    residual_share: float
    """Value left at the end, as a share of capex."""
    years: float
    cost_of_capital: float
    """Yearly, 0.10 for ten percent."""
    it_power_kw: float
    """At full load, with its share of the server."""
    load_share: float
    """Mean power / full power."""
    pue: float
    """Facility power / IT power."""
    usd_per_kwh: float
    usd_per_kw_month: float
    """Colocation: space and power capacity, without energy."""
    maintenance_usd_per_hour: float


@dataclass(frozen=True, slots=True)
class HourCost:
    """Parts of an owned GPU's hour, in USD per GPU-hour."""

    capital: float
    energy: float
    colocation: float
    maintenance: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.capital + self.energy + self.colocation + self.maintenance


@dataclass(frozen=True, slots=True)
class Waste:
    """Money that bought nothing, in USD per hour, by reason."""

    unallocated: float
    """GPUs that no model held."""
    idle: float
    """GPUs that a model held while nobody asked it anything."""
    headroom: float
    """Capacity at the SLO that working replicas had left."""

    @property
    def total(self) -> float:
        """All reasons together."""
        return self.unallocated + self.idle + self.headroom


def capital_recovery_factor(cost_of_capital: float, years: float) -> float:
    """Yearly payment for each dollar borrowed: w / (1 - (1 + w)^-n); 1 / n when capital is free."""
    _positive("years", years)
    if cost_of_capital == 0:
        return 1.0 / years
    return cost_of_capital / (1.0 - math.pow(1.0 + cost_of_capital, -years))


def owned_hour(gpu: OwnedGpu) -> HourCost:
    """What an hour of a bought GPU costs, whether it works or not."""
    crf = capital_recovery_factor(gpu.cost_of_capital, gpu.years)
    residual_now_usd = gpu.residual_share * gpu.capex_usd / math.pow(1.0 + gpu.cost_of_capital, gpu.years)
    return HourCost(
        capital=crf * (gpu.capex_usd - residual_now_usd) / HOURS_PER_YEAR,
        energy=gpu.it_power_kw * gpu.load_share * gpu.pue * gpu.usd_per_kwh,
        colocation=gpu.it_power_kw * gpu.usd_per_kw_month * MONTHS_PER_YEAR / HOURS_PER_YEAR,
        maintenance=gpu.maintenance_usd_per_hour,
    )


def usd_per_million_tokens(usd_per_hour: float, tokens_per_s: float, used_share: float = 1.0) -> float:
    """Dollars per million tokens of GPUs that cost `usd_per_hour` together.

    `tokens_per_s` is their capacity at the SLO and `used_share` the part of it in use; for the cost at a measured
    load give the measured rate and leave the share at 1.
    """
    _positive("tokens_per_s", tokens_per_s)
    _positive("used_share", used_share)
    return usd_per_hour * 1e6 / (tokens_per_s * 3600.0 * used_share)


def usd_per_1k_requests(usd_per_hour: float, good_requests_per_s: float, used_share: float = 1.0) -> float:
    """Dollars per thousand requests that met the SLO; arguments as for tokens."""
    _positive("good_requests_per_s", good_requests_per_s)
    _positive("used_share", used_share)
    return usd_per_hour * 1e3 / (good_requests_per_s * 3600.0 * used_share)


def break_even_months(
    one_off_usd: float, old_usd_per_month: float, new_usd_per_month: float, added_usd_per_month: float = 0.0
) -> float | None:
    """Months until a migration has paid for itself, with the same SLO on both sides; None when it never does."""
    saved = old_usd_per_month - new_usd_per_month - added_usd_per_month
    return one_off_usd / saved if saved > 0 else None


def waste_split(usd_per_gpu_hour: float, gpus: int, allocated_gpus: int, busy_gpus: float, used_share: float) -> Waste:
    """Where the money of an hour went unused.

    `busy_gpus` of the `allocated_gpus` belong to replicas that had requests (time-weighted, so it may be a fraction),
    and `used_share` is their load / capacity at the SLO.
    """
    if not 0 <= busy_gpus <= allocated_gpus <= gpus:
        raise ValueError(f"busy {busy_gpus} <= allocated {allocated_gpus} <= all {gpus} does not hold")
    if not 0 <= used_share <= 1:
        raise ValueError(f"used_share {used_share} is not within 0 and 1")
    return Waste(
        unallocated=(gpus - allocated_gpus) * usd_per_gpu_hour,
        idle=(allocated_gpus - busy_gpus) * usd_per_gpu_hour,
        headroom=busy_gpus * usd_per_gpu_hour * (1.0 - used_share),
    )


@dataclass(frozen=True, slots=True)
class SimplePreset:
    """The requirements' simple form: a flat month, one electricity price, cooling as a multiplier, 80 % as optimal."""

    hours_per_month: float = 730.0
    usd_per_kwh: float = 0.12
    cooling_multiplier: float = 1.4
    optimal_utilization: float = 0.80

    def monthly_usd(self, usd_per_gpu_hour: float, gpus: int, power_w: float) -> float:
        """GPU price and electricity of a month. `power_w` is for one GPU."""
        power_kw = gpus * power_w / 1e3
        energy_usd_per_hour = power_kw * self.usd_per_kwh * self.cooling_multiplier
        return (usd_per_gpu_hour * gpus + energy_usd_per_hour) * self.hours_per_month

    def usd_per_million_tokens(
        self, usd_per_gpu_hour: float, gpus: int, power_w: float, tokens_per_s_per_gpu: float
    ) -> float:
        """A month's cost over a month's tokens, all GPUs busy all the time."""
        hourly_usd = self.monthly_usd(usd_per_gpu_hour, gpus, power_w) / self.hours_per_month
        return usd_per_million_tokens(hourly_usd, tokens_per_s_per_gpu * gpus)

    def wasted_share(self, utilization: float) -> float:
        """(optimal - utilisation) / optimal; 0 at the optimum and above."""
        return max(0.0, (self.optimal_utilization - utilization) / self.optimal_utilization)


def _positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name} must be above 0 (got {value})")
