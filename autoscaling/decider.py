"""From one look at the cluster to the replicas of every scaled model: specs, observation, policy, limits.

It remembers what must be carried from one look to the next and does no I/O but to read models' config.json files once.
"""

import logging
from collections.abc import Iterable, Mapping
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple

from raylane.autoscaling.arbiter import LossArbiter
from raylane.autoscaling.decision import Move, Target
from raylane.autoscaling.limits import fitting, fleets, kept, limited
from raylane.autoscaling.moves import DomainMoves
from raylane.autoscaling.observation import Observation
from raylane.autoscaling.observe import Totals, number, observe
from raylane.autoscaling.policy import Memory, ModelSpec, Policy
from raylane.autoscaling.specs import chosen_rule, model_specs, with_cold_starts
from raylane.cluster.hosts import Host
from raylane.deployments.config import DeploymentConfig
from raylane.deployments.reports import ReplicaState, Snapshot
from raylane.deployments.scaling_config import ScalingConfig

log = logging.getLogger("raylane.autoscaler")

ORIGIN = "the deployed config"


class Fleet(NamedTuple):
    """The GPUs there are; `card` is None where they are of several kinds, or of none that is known.

    `gpus_of` are those of each host, by its address.
    `hosts` with their links are looked up only where singles may be moved for them.
    """

    gpus: int
    card: str | None
    hosts: tuple[Host, ...] = ()
    gpus_of: Mapping[str, int] = MappingProxyType({})


class Look(NamedTuple):
    """What was read at one moment. `woken`: models whose gateways have just begun to hold requests."""

    at_s: float
    snapshot: Snapshot
    targets: Mapping[str, int]
    fleet: Fleet
    woken: tuple[str, ...] = ()


class Decided(NamedTuple):
    """What was seen, and the replicas every scaled model is to have."""

    seen: Observation
    specs: Mapping[str, ModelSpec]
    targets: Mapping[str, Target]
    moves: tuple[Move, ...] = ()


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

    def decide(self, config: DeploymentConfig, look: Look) -> Decided:
        """Raises UsageError when a model's capacity cannot be known."""
        scaling = config.scaling or ScalingConfig()
        specs = self._specs(config, look)
        asked = dict(look.targets)
        if scaling.mode == "shadow":  # it goes by its own counts, as if they had been applied
            asked |= {name: count for name, count in self._shadow.items() if name in asked and name in specs}
        gpus = scaling.fleet_gpus or look.fleet.gpus
        seen, self._totals = observe(look.snapshot, asked, config, gpus, look.at_s, self._totals, look.woken)
        first = self._began_s is None
        began_s = self._began_s = look.at_s if self._began_s is None else self._began_s
        warm = look.at_s - began_s >= scaling.warm_up_s
        parts = fleets(seen, specs, config)
        answer, moves = self._ask(scaling, parts, specs, look.fleet.hosts)
        targets = {
            model.name: limited(answer[model.name], model, specs[model.name], first=first, warm=warm)
            for model in seen.models
            if model.name in answer
        }
        if not warm:
            for part in parts:
                names = {model.name for model in part.models}
                targets |= fitting({name: one for name, one in targets.items() if name in names}, part, specs)
        self._shadow = {name: target.replicas for name, target in targets.items()}
        return Decided(seen, specs, targets, () if first else moves)

    def _specs(self, config: DeploymentConfig, look: Look) -> dict[str, ModelSpec]:
        card = look.fleet.card
        if self._specs_of is None or self._specs_of[:2] != (config, card):
            self._specs_of = (config, card, model_specs(config, card, ORIGIN))
        specs = self._specs_of[2]
        for name in specs:
            ready = (r for r in look.snapshot.replicas if r.model == name and r.state is ReplicaState.READY)
            starts_s = [found for found in (number(report.started_s) for report in ready) if found]
            if starts_s:
                self._starts_s[name] = median(starts_s)
        return with_cold_starts(specs, config, self._starts_s)

    def _ask(
        self,
        scaling: ScalingConfig,
        parts: Iterable[Observation],
        specs: Mapping[str, ModelSpec],
        hosts: tuple[Host, ...],
    ) -> tuple[dict[str, Target], tuple[Move, ...]]:
        """The policy's answer for each part of the fleet; what is there where it fails."""
        rule = (scaling.policy, scaling.knobs)
        if rule != self._rule:  # another rule cannot read what this one remembers
            self._rule, self._memory = rule, {}
        room = DomainMoves(hosts) if scaling.moves and hosts else None
        policy = Policy(specs, chosen_rule(scaling, ORIGIN), LossArbiter(), scaling.decide_every_s, room)
        answer: dict[str, Target] = {}
        memory: dict[str, Any] = {}
        moves: tuple[Move, ...] = ()
        for part in parts:
            try:
                decision, remembered = policy.decide(part, self._memory)
            except Exception:  # a rule that stumbles over its readings must not stop the others
                log.exception("policy %s did not decide", scaling.policy)
                answer |= {model.name: kept(model) for model in part.models}
                memory |= {name: past for name, past in self._memory.items() if name in answer}
                continue
            answer |= decision.targets
            memory |= remembered
            moves += decision.moves
        self._memory = memory
        return answer, moves
