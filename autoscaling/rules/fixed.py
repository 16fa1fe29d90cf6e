"""A fixed number of replicas: the static fleet."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import NonNegativeInt

from raylane.autoscaling.decision import Reason
from raylane.autoscaling.observation import ModelSeen
from raylane.autoscaling.policy import ModelSpec, Wish


@dataclass(frozen=True)
class Fixed:
    """The same replicas whatever happens; with 0 a model stays off, also when requests are held."""

    replicas: Mapping[str, NonNegativeInt] | NonNegativeInt = 1
    """By model name, or one number for all. A model that is not named keeps what it has."""

    def wish(self, spec: ModelSpec, seen: ModelSeen, at_s: float, memory: None = None) -> tuple[Wish, None]:
        """Remembers nothing."""
        named = self.replicas if isinstance(self.replicas, int) else self.replicas.get(spec.name, seen.target)
        return Wish(named, Reason.STATIC), None
