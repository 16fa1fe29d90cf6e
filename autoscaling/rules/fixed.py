"""A fixed number of replicas: the static fleet."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import NonNegativeInt

from raylane.autoscaling.decision import Proposal, Reason
from raylane.autoscaling.observation import ModelObservation
from raylane.autoscaling.rules.entry import RuleEntry
from raylane.autoscaling.share import in_turn
from raylane.autoscaling.spec import ModelSpec


@dataclass(frozen=True)
class Fixed:
    """The same replicas whatever happens; with 0 a model stays off, also when requests are held."""

    replicas: Mapping[str, NonNegativeInt] | NonNegativeInt = 1
    """By model name, or one number for all. A model that is not named keeps what it has."""

    def propose(
        self, spec: ModelSpec, seen: ModelObservation, at_s: float, memory: None = None
    ) -> tuple[Proposal, None]:
        """Remembers nothing."""
        named = self.replicas if isinstance(self.replicas, int) else self.replicas.get(spec.name, seen.target)
        return Proposal(named, Reason.STATIC), None


ENTRY = RuleEntry(Fixed, "a fixed number of replicas", in_turn, "replicas", (1, 2, 3, 4, 5, 6, 8, 10, 12))
