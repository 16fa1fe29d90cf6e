"""A replay: requests arrive, a policy decides, replicas start, serve and drain, in virtual time.

Everything happens on one thread in order of time. Engines are advanced only when somebody asks, which changes nothing
in their results; requests go to the ready replica with the fewest in it, as the gateway does.
"""

import random
from collections import deque
from heapq import heappop, heappush

from raylane.autoscaling.decision import Decision, ReplicaMove
from raylane.autoscaling.lab.fleet import GpuPlace, LabFleet
from raylane.autoscaling.lab.setup import LabModel, Setup
from raylane.autoscaling.observation import ModelObservation, Observation, Phase, ReplicaObservation
from raylane.autoscaling.pipeline import Policy
from raylane.autoscaling.propose import Memory
from raylane.deployments.simulator.replica import Replica
from raylane.deployments.simulator.request import Request
from raylane.deployments.slo import judge

AFTER_THE_END_S = 900.0  # requests unfinished this long after the last arrival count as lost


class LabReplica:
    """One replica of one model, from the decision to start it to the release of its GPUs."""

    def __init__(self, replica_id: str, requested_s: float) -> None:
        self.replica_id = replica_id
        self.phase = Phase.STARTING
        self.requested_s = requested_s
        self.place: GpuPlace | None = None
        self.placed_s = 0.0
        self.ready_s = 0.0
        self.engine: Replica | None = None
        self.busy_s = 0.0  # engine's busy total at the last look
        self.move: ReplicaMove | None = None


class ModelState:
    """One model's replicas, traffic and record."""

    def __init__(self, model: LabModel, setup: Setup) -> None:
        trace = setup.traces[model.spec.name]
        self.model = model
        self.name = model.spec.name
        self.inputs: list[int] = trace.input_tokens.tolist()
        self.outputs: list[int] = trace.output_tokens.tolist()
        self.arrivals_s: list[float] = trace.at_s.tolist()
        count = len(self.inputs)
        self.first_s: list[float | None] = [None] * count
        self.finished_s: list[float | None] = [None] * count
        slo = model.spec.slo
        self.limits = slo.limits()
        self.target = 0
        self.replicas: list[LabReplica] = []
        self.ready: list[LabReplica] = []
        self.held: deque[int] = deque()
        self.arrived = self.finished = self.rejected = 0
        self.prompt_tokens = self.output_tokens = 0  # of replicas that are gone
        self.missed = 0
        self.ups = self.downs = self.starts = self.moves = self.wakes = 0
        self.targets: list[tuple[float, int]] = []  # (time, target) at each change
        self.allocated: list[tuple[float, float, int]] = []  # (from, to, GPUs)
        self.loading_gpu_s = 0.0
        self.second_best_starts = 0


class World:
    """run() replays the setup under a policy."""

    def __init__(self, setup: Setup, policy: Policy, seed: int) -> None:
        self.setup = setup
        self.policy = policy
        self.fleet = LabFleet(setup.hosts)
        self.models = [ModelState(model, setup) for model in setup.models]
        self._by_name = {model.name: model for model in self.models}
        self._rng = random.Random(seed)  # noqa: S311 - a simulation
        self._memory: Memory = {}
        self._events: list[tuple[float, int, LabReplica, ModelState]] = []  # cold starts that end
        self._sequence = 0
        self._ticked_s = 0.0
        self.end_s = max(trace.duration_s for trace in setup.traces.values())
        for model in self.models:
            self._begin(model)

    def run(self) -> "World":
        """Replay every request and let the last ones finish."""
        every_s = self.policy.decide_every_s
        tick_s = every_s
        for at_s, model, index in self._arrivals():
            while tick_s <= at_s:
                self._until(tick_s)
                self._tick(tick_s)
                tick_s += every_s
            self._until(at_s)
            self._arrive(model, index, at_s)
        last_s = self.end_s + AFTER_THE_END_S
        while tick_s < self.end_s or (tick_s < last_s and self._open()):
            self._until(tick_s)
            self._tick(tick_s)
            tick_s += every_s
        self._close(tick_s)
        return self

    def _arrivals(self) -> list[tuple[float, ModelState, int]]:
        merged = [(at_s, n, i) for n, model in enumerate(self.models) for i, at_s in enumerate(model.arrivals_s)]
        merged.sort()
        return [(at_s, self.models[n], i) for at_s, n, i in merged]

    def _begin(self, model: ModelState) -> None:
        """The replicas that are there at the start, ready."""
        model.target = model.model.initial_replicas
        model.targets.append((0.0, model.target))
        for _ in range(model.target):
            replica = self._new(model, 0.0)
            replica.place = self.fleet.take(model.model.spec.gpus)
            if replica.place is not None:
                self._make_ready(model, replica, 0.0)

    def _new(self, model: ModelState, at_s: float) -> LabReplica:
        self._sequence += 1
        replica = LabReplica(f"{model.name}-{self._sequence}", at_s)
        model.replicas.append(replica)
        return replica

    def _make_ready(self, model: ModelState, replica: LabReplica, at_s: float) -> None:
        assert replica.place is not None  # noqa: S101
        engine = model.model.engine_apart if replica.place.second_best else model.model.engine
        replica.engine = Replica(engine, starts_s=at_s)
        replica.busy_s = 0.0
        replica.phase = Phase.READY
        replica.ready_s = at_s
        model.ready.append(replica)
        while model.held:
            self._send(model, model.held.popleft(), at_s)

    def _until(self, at_s: float) -> None:
        """Cold starts that end by then."""
        while self._events and self._events[0][0] <= at_s:
            ready_s, _, replica, model = heappop(self._events)
            if replica.phase is Phase.STARTING and replica.place is not None:
                model.loading_gpu_s += (ready_s - replica.placed_s) * len(replica.place.gpus)
                self._make_ready(model, replica, ready_s)

    def _arrive(self, model: ModelState, index: int, at_s: float) -> None:
        model.arrived += 1
        if model.ready:
            self._send(model, index, at_s)
            return
        model.held.append(index)
        if model.target == 0 and len(model.held) == 1:
            model.wakes += 1
            self._tick(at_s)

    def _send(self, model: ModelState, index: int, at_s: float) -> None:
        """To the ready replica with the fewest requests; equal ones take turns."""
        ready = model.ready
        count = len(ready)
        turn = index % count
        best: Replica | None = None
        fewest = 0
        for offset in range(count):
            engine = ready[(turn + offset) % count].engine
            assert engine is not None  # noqa: S101
            engine.advance(at_s)
            inside = engine.in_system
            if best is None or inside < fewest:
                best, fewest = engine, inside
        assert best is not None  # noqa: S101
        best.submit(Request(at_s, model.inputs[index], model.outputs[index], index))

    def _tick(self, at_s: float) -> None:
        for model in self.models:
            self._collect(model, at_s)
            self._expire_held(model, at_s)
        self._decide(at_s)
        self._ticked_s = at_s

    def _collect(self, model: ModelState, at_s: float) -> None:
        """Take what finished, and the GPUs of replicas that have drained."""
        for replica in list(model.replicas):
            engine = replica.engine
            if engine is None:
                continue
            engine.advance(at_s)
            for outcome in engine.take_finished():
                request = outcome.request
                index = int(request.key)
                first_s, finished_s = outcome.first_token_s, outcome.finished_s
                model.first_s[index] = first_s
                model.finished_s[index] = finished_s
                model.finished += 1
                waited_s = first_s - model.arrivals_s[index]
                each_s = (finished_s - first_s) / max(1, request.output_tokens - 1)
                model.missed += not judge(model.limits, True, waited_s, each_s, request.input_tokens).good
            if replica.phase is Phase.DRAINING and not engine.in_system:
                self._drained(model, replica, at_s)

    def _drained(self, model: ModelState, replica: LabReplica, at_s: float) -> None:
        if replica.engine is not None:
            last = replica.engine.signals()
            model.prompt_tokens += last.prompt_tokens_total
            model.output_tokens += last.generated_tokens_total
        replica.engine = None
        if replica.move is None:
            self._release(model, replica, at_s)
            model.replicas.remove(replica)
            return
        self._release(model, replica, at_s)
        host = replica.place.host if replica.place is not None else ""
        replica.place = self.fleet.take_these(host, replica.move.to_gpus)
        replica.move = None
        replica.phase = Phase.STARTING
        if replica.place is not None:
            self._load(model, replica, at_s)

    def _release(self, model: ModelState, replica: LabReplica, at_s: float) -> None:
        if replica.place is not None:
            self.fleet.give_back(replica.place)
            gpus = len(replica.place.gpus)
            model.allocated.append((replica.placed_s, at_s, gpus))
            if replica.phase is Phase.STARTING:
                model.loading_gpu_s += (at_s - replica.placed_s) * gpus

    def _expire_held(self, model: ModelState, at_s: float) -> None:
        while model.held and at_s - model.arrivals_s[model.held[0]] > self.setup.hold_timeout_s:
            model.held.popleft()
            model.rejected += 1

    def _decide(self, at_s: float) -> None:
        decision, self._memory = self.policy.decide(self._observe(at_s), self._memory)
        self._apply(decision, at_s)
        self._place_pending(at_s)

    def _observe(self, at_s: float) -> Observation:
        return Observation(at_s, tuple(self._see(model, at_s) for model in self.models), self.fleet.size)

    def _see(self, model: ModelState, at_s: float) -> ModelObservation:
        oldest_s: float | None = model.arrivals_s[model.held[0]] if model.held else None
        prompt_tokens, output_tokens = model.prompt_tokens, model.output_tokens
        seen = []
        for replica in model.replicas:
            gpus = () if replica.place is None else replica.place.gpus
            host = "" if replica.place is None else replica.place.host
            engine = replica.engine
            if engine is None:
                seen.append(ReplicaObservation(replica.replica_id, replica.phase, gpus=gpus, host=host))
                continue
            now = engine.signals()
            since_s = at_s - max(self._ticked_s, replica.ready_s)
            busy = (now.busy_s_total - replica.busy_s) / since_s if since_s > 0 else None
            replica.busy_s = now.busy_s_total
            prompt_tokens += now.prompt_tokens_total
            output_tokens += now.generated_tokens_total
            seen.append(
                ReplicaObservation(
                    replica.replica_id, replica.phase, now.waiting, now.running, now.kv_usage, busy, gpus, host
                )
            )
            waiting_since_s = engine.waiting_since_s
            if waiting_since_s is not None and (oldest_s is None or waiting_since_s < oldest_s):
                oldest_s = waiting_since_s
        return ModelObservation(
            name=model.name,
            target=model.target,
            replicas=tuple(seen),
            arrivals_total=model.arrived,
            finished_total=model.finished,
            rejected_total=model.rejected,
            missed_total=model.missed,
            prompt_tokens_total=prompt_tokens,
            output_tokens_total=output_tokens,
            held=len(model.held),
            queue_age_s=None if oldest_s is None else at_s - oldest_s,
        )

    def _apply(self, decision: Decision, at_s: float) -> None:
        for name, target in decision.targets.items():
            model = self._by_name[name]
            change = target.replicas - model.target
            if not change:
                continue
            model.target = target.replicas
            model.targets.append((at_s, model.target))
            if change > 0:
                model.ups += 1
                for _ in range(change):
                    self._new(model, at_s)
            else:
                model.downs += 1
                self._stop(model, -change, at_s)
        for move in decision.moves:
            self._start_move(move)

    def _stop(self, model: ModelState, count: int, at_s: float) -> None:
        """As Serve chooses: those not ready yet first, then the newest."""
        alive = [replica for replica in model.replicas if replica.phase is not Phase.DRAINING]
        alive.sort(key=lambda replica: (replica.phase is Phase.READY, replica.place is not None, -replica.requested_s))
        for replica in alive[:count]:
            if replica.phase is Phase.READY:
                model.ready.remove(replica)
                replica.phase = Phase.DRAINING
            else:
                self._release(model, replica, at_s)
                model.replicas.remove(replica)
                replica.phase = Phase.DRAINING  # a cold start that ends later finds it gone
        moving = [replica for replica in model.replicas if replica.move is not None]
        for replica in moving[: max(0, count - len(alive))]:
            replica.move = None  # what drains for a move goes for good

    def _start_move(self, move: ReplicaMove) -> None:
        for model in self.models:
            for replica in model.ready:
                if replica.replica_id == move.replica_id and len(model.ready) > 1:
                    model.ready.remove(replica)
                    replica.phase = Phase.DRAINING
                    replica.move = move
                    model.moves += 1
                    return

    def _place_pending(self, at_s: float) -> None:
        for model in self.models:
            for replica in model.replicas:
                if replica.phase is Phase.STARTING and replica.place is None:
                    replica.place = self.fleet.take(model.model.spec.gpus)
                    if replica.place is None:
                        break
                    self._load(model, replica, at_s)

    def _load(self, model: ModelState, replica: LabReplica, at_s: float) -> None:
        assert replica.place is not None  # noqa: S101
        replica.placed_s = at_s
        model.starts += 1
        model.second_best_starts += replica.place.second_best
        takes_s = model.model.cold_start.draw(self._rng)
        self._sequence += 1
        heappush(self._events, (at_s + takes_s, self._sequence, replica, model))

    def _open(self) -> bool:
        return any(model.finished + model.rejected < model.arrived for model in self.models)

    def _close(self, at_s: float) -> None:
        for model in self.models:
            for replica in model.replicas:
                self._release(model, replica, at_s)
            model.rejected += len(model.held)
            model.held.clear()
