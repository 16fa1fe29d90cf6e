"""Make room for a pair on a whole domain: move a single out of the way before the pair starts. Pure.

A replica of several GPUs that starts while no whole domain is free gets second-best links for the whole of its life. If
one single-GPU replica stands between it and a domain, that single drains and restarts its engine elsewhere on its host,
and the pair's start waits for it. That pays when the single's model can spare it for a cold start and nobody waits for
the pair yet; else the pair starts where it can.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raylane.autoscaling.decision import Decision, Move, Reason, Target
from raylane.autoscaling.observation import ModelSeen, Observation, Phase, ReplicaSeen
from raylane.cluster.choose import Choice, choose
from raylane.cluster.hosts import Host
from raylane.cluster.moves import free_a_domain


@dataclass(frozen=True)
class DomainMoves:
    """`hosts` are those whose links are known; on others nothing is moved."""

    hosts: tuple[Host, ...] = ()

    def plan(self, decision: Decision, seen: Observation, gpus: Mapping[str, int]) -> Decision:
        """The decision with at most one move, and the growth that waits for it. `gpus`: of one replica, by model."""
        for model in seen.models:
            target = decision.targets.get(model.name)
            if target is None or gpus.get(model.name, 1) < 2 or target.replicas <= model.target or late(model):
                continue
            held = holders(seen.models)
            if any(whole_domain(host, held, gpus[model.name]) for host in self.hosts):
                continue
            roomy = any(enough(host, held, gpus[model.name]) for host in self.hosts)
            draining = any(replica.phase is Phase.DRAINING for one in seen.models for replica in one.replicas)
            move = self._move(decision, seen, held, gpus[model.name]) if roomy and not draining else None
            if move is None and roomy and not draining:
                continue  # no single stands in the way, or none can be spared
            waits = Target(model.target, Reason.DOMAIN, target.detail)
            moves = decision.moves if move is None else (*decision.moves, move)
            return Decision({**decision.targets, model.name: waits}, moves)
        return decision

    def _move(self, decision: Decision, seen: Observation, held: Mapping[str, ReplicaSeen], tp: int) -> Move | None:
        spared = {
            replica.replica_id
            for model in seen.models
            if len(model.ready) > 1 and can_spare(model, decision.targets.get(model.name))
            for replica in model.ready
        }
        for host in self.hosts:
            if not enough(host, held, tp):
                continue
            known = {gpu.uuid for gpu in host.gpus}
            here = {frozenset(replica.gpus): replica.replica_id for uuid, replica in held.items() if uuid in known}
            found = free_a_domain(host, here, tp)
            if found is not None and found.moves == 1 and found.replica in spared:
                return Move(found.replica, (found.to_gpu,), found.reason)
        return None


def holders(models: Iterable[ModelSeen]) -> dict[str, ReplicaSeen]:
    """Who holds each GPU."""
    return {uuid: replica for model in models for replica in model.replicas for uuid in replica.gpus}


def enough(host: Host, held: Mapping[str, ReplicaSeen], tp: int) -> bool:
    """Whether the host has that many free GPUs, however they are linked."""
    return sum(gpu.uuid not in held for gpu in host.gpus) >= tp


def whole_domain(host: Host, held: Mapping[str, ReplicaSeen], tp: int) -> bool:
    """Whether a replica would get the best links here."""
    choice = choose(frozenset(gpu.uuid for gpu in host.gpus if gpu.uuid not in held), host, tp)
    return isinstance(choice, Choice) and not choice.second_best


def can_spare(model: ModelSeen, target: Target | None) -> bool:
    """A model that is not short: it has what it wishes for, and nothing waits."""
    return (
        target is not None and target.replicas <= model.target and not late(model) and not model.count(Phase.STARTING)
    )


def late(model: ModelSeen) -> bool:
    """Requests wait for this model."""
    return bool(model.held) or any(replica.waiting for replica in model.ready)
