"""What a recommendation would have saved against what ran. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from raylane.autoscaling.observation import Observation
from raylane.autoscaling.spec import ModelSpec

LONGEST_STEP_S = 60.0  # longer gaps are times in which nobody watched: they count for neither side


@dataclass(frozen=True)
class Ledger:
    """GPU-seconds that ran and that were recommended, for the models that are scaled, since `since_s` (wall clock)."""

    since_s: float
    ran_gpu_s: float = 0.0
    recommended_gpu_s: float = 0.0

    def after(self, ran_gpus: float, recommended_gpus: float, for_s: float) -> "Ledger":
        """With a further span of time at these counts."""
        step_s = for_s if 0.0 < for_s <= LONGEST_STEP_S else 0.0
        return Ledger(
            self.since_s, self.ran_gpu_s + ran_gpus * step_s, self.recommended_gpu_s + recommended_gpus * step_s
        )

    def saved_gpu_hours(self) -> float:
        """Negative where more was recommended than ran."""
        return (self.ran_gpu_s - self.recommended_gpu_s) / 3600

    def saved_usd(self, usd_per_gpu_hour: float | None) -> float | None:
        return None if usd_per_gpu_hour is None else self.saved_gpu_hours() * usd_per_gpu_hour


def gpus_held(seen: Observation, specs: Mapping[str, ModelSpec]) -> int:
    """GPUs that replicas of the scaled models hold, loading and draining ones too."""
    return sum(len(replica.gpus) for model in seen.models if model.name in specs for replica in model.replicas)
