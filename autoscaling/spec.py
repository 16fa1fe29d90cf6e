"""What a policy knows of a model beforehand, and the bounds it is held to. Pure."""

from dataclasses import dataclass

from raylane.autoscaling.profile import CapacityProfile
from raylane.deployments.slo import Slo


@dataclass(frozen=True)
class ModelSpec:
    """One model: what a replica takes and carries, and the range that is decided in."""

    name: str
    gpus: int
    """GPUs of one replica."""
    min_replicas: int
    max_replicas: int
    slo: Slo
    profile: CapacityProfile
    cold_start_s: float
    """From the decision to the first token of a new replica: the median expected."""
    priority: float = 1.0
    """Weight of one of its requests where models compete."""

    def clamp(self, replicas: int) -> int:
        """The count within the model's bounds."""
        return max(self.min_replicas, min(replicas, self.max_replicas))
