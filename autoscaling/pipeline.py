"""One decision, from an observation to targets and moves: propose -> share -> constrain -> move. Pure.

The live autoscaler (live/decider.py) and the replay lab (lab/world.py) call `Policy.decide`, nothing else: what the lab
measures is what runs.
"""

from dataclasses import dataclass

from raylane.autoscaling.constrain import WatchedFor, constrain
from raylane.autoscaling.decision import Decision
from raylane.autoscaling.move import make_room
from raylane.autoscaling.observation import Observation, clean
from raylane.autoscaling.propose import Memory, Proposer, Specs, propose
from raylane.autoscaling.share import Sharing
from raylane.cluster.hosts import Host


@dataclass(frozen=True)
class Policy:
    """One rule for every model, and one way to share the GPUs."""

    specs: Specs
    proposer: Proposer
    sharing: Sharing
    decide_every_s: float = 5.0
    hosts: tuple[Host, ...] = ()
    """Where singles may be moved out of the way of pairs; () moves nothing."""
    name: str = ""

    def decide(
        self, seen: Observation, memory: Memory, watched: WatchedFor = WatchedFor.LONG
    ) -> tuple[Decision, Memory]:
        """Replicas for every model that is known, with reasons; and what to remember. Start with an empty memory."""
        seen = seen._replace(models=tuple(map(clean, seen.models)))
        proposals, memory = propose(self.proposer, self.specs, seen, memory)
        shared = self.sharing(proposals, self.specs, seen)
        targets = constrain(shared, self.specs, seen, watched)
        if watched is WatchedFor.NO_TIME:
            return Decision(targets), memory
        return make_room(targets, self.specs, seen, self.hosts), memory
