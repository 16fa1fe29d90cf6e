"""Stage 4 of a decision: room for a pair on a whole domain, by moving a single out of the way first. Pure.

A replica of several GPUs that starts while no whole domain is free gets second-best links for the whole of its life. If
one single-GPU replica stands between it and a domain, that single drains and restarts its engine elsewhere on its host,
and the pair's start waits for it. That pays when the single's model can spare it for a cold start and nobody waits for
the pair yet; else the pair starts where it can.
"""

from collections.abc import Iterable, Mapping, Sequence

from raylane.autoscaling.decision import Decision, Reason, ReplicaMove, Target
from raylane.autoscaling.observation import ModelObservation, Observation, Phase, ReplicaObservation
from raylane.autoscaling.propose import Specs
from raylane.cluster.choose import Choice, choose
from raylane.cluster.hosts import Host
from raylane.cluster.moves import free_a_domain

Targets = Mapping[str, Target]


def make_room(targets: Targets, specs: Specs, seen: Observation, hosts: Sequence[Host]) -> Decision:
    """The targets, at most one move, and the growth that waits for it. On hosts that are not given nothing is moved."""
    for model in seen.models if hosts else ():
        target = targets.get(model.name)
        if target is None or specs[model.name].gpus < 2 or target.replicas <= model.target or late(model):
            continue
        gpus, held = specs[model.name].gpus, holders(seen.models)
        if any(whole_domain(host, held, gpus) for host in hosts):
            continue
        roomy = any(enough(host, held, gpus) for host in hosts)
        draining = any(replica.phase is Phase.DRAINING for one in seen.models for replica in one.replicas)
        move = _move(targets, seen, hosts, held, gpus) if roomy and not draining else None
        if move is None and roomy and not draining:
            continue  # no single stands in the way, or none can be spared
        waits = target._replace(replicas=model.target, reason=Reason.DOMAIN)
        return Decision({**targets, model.name: waits}, () if move is None else (move,))
    return Decision(dict(targets))


def _move(
    targets: Targets, seen: Observation, hosts: Sequence[Host], held: Mapping[str, ReplicaObservation], gpus: int
) -> ReplicaMove | None:
    spared = {
        replica.replica_id
        for model in seen.models
        if len(model.ready) > 1 and can_spare(model, targets.get(model.name))
        for replica in model.ready
    }
    for host in hosts:
        if not enough(host, held, gpus):
            continue
        known = {gpu.uuid for gpu in host.gpus}
        here = {frozenset(replica.gpus): replica.replica_id for uuid, replica in held.items() if uuid in known}
        found = free_a_domain(host, here, gpus)
        if found is not None and found.moves == 1 and found.replica in spared:
            return ReplicaMove(found.replica, (found.to_gpu,), found.reason)
    return None


def holders(models: Iterable[ModelObservation]) -> dict[str, ReplicaObservation]:
    """Who holds each GPU."""
    return {uuid: replica for model in models for replica in model.replicas for uuid in replica.gpus}


def enough(host: Host, held: Mapping[str, ReplicaObservation], gpus: int) -> bool:
    """Whether the host has that many free GPUs, however they are linked."""
    return sum(gpu.uuid not in held for gpu in host.gpus) >= gpus


def whole_domain(host: Host, held: Mapping[str, ReplicaObservation], gpus: int) -> bool:
    """Whether a replica would get the best links here."""
    choice = choose(frozenset(gpu.uuid for gpu in host.gpus if gpu.uuid not in held), host, gpus)
    return isinstance(choice, Choice) and not choice.second_best


def can_spare(model: ModelObservation, target: Target | None) -> bool:
    """A model that is not short: it has what was proposed for it, and nothing waits."""
    return (
        target is not None and target.replicas <= model.target and not late(model) and not model.count(Phase.STARTING)
    )


def late(model: ModelObservation) -> bool:
    """Requests wait for this model."""
    return bool(model.held) or any(replica.waiting for replica in model.ready)
