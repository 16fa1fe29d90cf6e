"""From one reading of the cluster to the replicas of every scaled model: observe, then a decision for each GPU pool.

It remembers what must be carried from one reading to the next and does no I/O but to read models' config.json files
once. What is decided and in which order is the pipeline's (pipeline.py), the same as in the replay lab.
"""

import logging
from collections.abc import Iterable, Mapping
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple

from raylane.autoscaling.constrain import WatchedFor, constrain, unchanged
from raylane.autoscaling.decision import Decision, ReplicaMove, Target
from raylane.autoscaling.live.pools import pools
from raylane.autoscaling.live.specs import chosen_policy, model_specs, with_cold_starts
from raylane.autoscaling.observation import Observation
from raylane.autoscaling.observe import Totals, number, observe
from raylane.autoscaling.pipeline import Policy
from raylane.autoscaling.propose import Memory
from raylane.autoscaling.spec import ModelSpec
from raylane.cluster.hosts import Host
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.config.scaling import ScalingConfig
from raylane.deployments.directory.reports import ReplicaState, Snapshot

log = logging.getLogger("raylane.autoscaler")

ORIGIN = "the deployed config"


class FleetGpus(NamedTuple):
    """The GPUs there are; `card` is None where they are of several kinds, or of none that is known.

    `gpus_of` are those of each host, by its address.
    `hosts` with their links are looked up only where singles may be moved for them.
    """

    gpus: int
    card: str | None
    hosts: tuple[Host, ...] = ()
    gpus_of: Mapping[str, int] = MappingProxyType({})


class ClusterReading(NamedTuple):
    """What was read at one moment. `woken`: models whose gateways have just begun to hold requests."""

    at_s: float
    snapshot: Snapshot
    targets: Mapping[str, int]
    fleet: FleetGpus
    woken: tuple[str, ...] = ()


class Decided(NamedTuple):
    """What was seen, and the replicas every scaled model is to have."""

    seen: Observation
    specs: Mapping[str, ModelSpec]
    targets: Mapping[str, Target]
    moves: tuple[ReplicaMove, ...] = ()


class Decider:
    """One deployed config's decisions. A change of the config keeps what was learnt of the load."""

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._specs_of: tuple[DeploymentConfig, str | None, dict[str, ModelSpec]] | None = None
        self._starts_s: dict[str, float] = {}
        self._totals = Totals()
        self._memory: Memory = {}
        self._rule: tuple[Any, ...] = ()
        self._shadow: dict[str, int] = {}

    def decide(self, config: DeploymentConfig, reading: ClusterReading) -> Decided:
        """Raises UsageError when a model's capacity cannot be known."""
        scaling = config.scaling or ScalingConfig()
        specs = self._specs(config, reading)
        seen = self._observe(config, scaling, specs, reading)
        watched = self._watched(reading.at_s, scaling.warm_up_s)
        policy = chosen_policy(scaling, specs, reading.fleet.hosts, ORIGIN)
        decision = self._decide(scaling, policy, pools(seen, specs, config), watched)
        self._shadow = {name: target.replicas for name, target in decision.targets.items()}
        return Decided(seen, specs, decision.targets, decision.moves)

    def _observe(
        self, config: DeploymentConfig, scaling: ScalingConfig, specs: Mapping[str, ModelSpec], reading: ClusterReading
    ) -> Observation:
        targets = dict(reading.targets)
        if scaling.mode == "shadow":  # it goes by its own counts, as if they had been applied
            targets |= {name: count for name, count in self._shadow.items() if name in targets and name in specs}
        gpus = scaling.fleet_gpus or reading.fleet.gpus
        seen, self._totals = observe(reading.snapshot, targets, config, gpus, reading.at_s, self._totals, reading.woken)
        return seen

    def _watched(self, at_s: float, warm_up_s: float) -> WatchedFor:
        if self._began_s is None:
            self._began_s = at_s
            return WatchedFor.NO_TIME
        return WatchedFor.LONG if at_s - self._began_s >= warm_up_s else WatchedFor.SHORT

    def _specs(self, config: DeploymentConfig, reading: ClusterReading) -> dict[str, ModelSpec]:
        card = reading.fleet.card
        if self._specs_of is None or self._specs_of[:2] != (config, card):
            self._specs_of = (config, card, model_specs(config, card, ORIGIN))
        specs = self._specs_of[2]
        for name in specs:
            ready = (r for r in reading.snapshot.replicas if r.model == name and r.state is ReplicaState.READY)
            starts_s = [found for found in (number(report.started_s) for report in ready) if found]
            if starts_s:
                self._starts_s[name] = median(starts_s)
        return with_cold_starts(specs, config, self._starts_s)

    def _decide(
        self, scaling: ScalingConfig, policy: Policy, parts: Iterable[Observation], watched: WatchedFor
    ) -> Decision:
        """The policy's decision for each pool of GPUs; what is there where the rule fails."""
        rule = (scaling.policy, scaling.knobs)
        if rule != self._rule:  # another rule cannot read what this one remembers
            self._rule, self._memory = rule, {}
        targets: dict[str, Target] = {}
        moves: tuple[ReplicaMove, ...] = ()
        memory: dict[str, Any] = {}
        for part in parts:
            try:
                decision, remembered = policy.decide(part, self._memory, watched)
            except Exception:  # a rule that stumbles over its readings must not stop the others
                log.exception("policy %s did not decide", scaling.policy)
                targets |= constrain(unchanged(part), policy.specs, part, watched)
                names = {model.name for model in part.models}
                memory |= {name: past for name, past in self._memory.items() if name in names}
                continue
            targets |= decision.targets
            moves += decision.moves
            memory |= remembered
        self._memory = memory
        return Decision(targets, moves)
