"""Who gets the GPUs when models together want more than there are. Pure.

GPUs go one replica at a time to the model that loses most without it: the share of its own requests which that replica
would serve, times the model's priority, for each GPU it takes. Every model's minimum comes first. What a model holds
already counts a little more than what another asks for, so that two equal models do not pass a GPU to and fro.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from raylane.autoscaling.decision import Decision, Reason, Target
from raylane.autoscaling.observation import Observation
from raylane.autoscaling.policy import ModelSpec, Wish

STILL_NEEDED = 1.1  # a replica that runs counts in full while this much more than the need would use it


@dataclass(frozen=True)
class LossArbiter:
    """`keep_margin`: how many times more another model must lose before a replica that runs is given up for it."""

    keep_margin: float = 1.3

    def share(self, wishes: Mapping[str, Wish], specs: Mapping[str, ModelSpec], seen: Observation) -> Decision:
        """Every wish where they fit together; else the best use of the fleet. Never more GPUs than there are."""
        if sum(wish.replicas * specs[name].gpus for name, wish in wishes.items()) <= seen.gpus:
            return Decision({name: Target(wish.replicas, wish.reason, wish.detail) for name, wish in wishes.items()})
        have = {model.name: model.target for model in seen.models}
        given = self._deal(wishes, specs, have, seen.gpus)
        return Decision(
            {name: _explain(wish, given[name], have.get(name, 0)) for name, wish in wishes.items()},
        )

    def _deal(
        self, wishes: Mapping[str, Wish], specs: Mapping[str, ModelSpec], have: Mapping[str, int], gpus: int
    ) -> dict[str, int]:
        given = dict.fromkeys(wishes, 0)
        left = gpus
        for name in sorted(wishes, key=lambda name: -specs[name].priority):
            floor = min(specs[name].min_replicas, wishes[name].replicas, left // specs[name].gpus)
            given[name] = floor
            left -= floor * specs[name].gpus
        while True:
            able = [n for n in wishes if given[n] < wishes[n].replicas and specs[n].gpus <= left]
            if not able:
                return given
            best = max(
                able,
                key=lambda n: (
                    self._value(wishes[n], specs[n], given[n] + 1, have.get(n, 0)),
                    -given[n],
                    have.get(n, 0),
                ),
            )
            given[best] += 1
            left -= specs[best].gpus

    def _value(self, wish: Wish, spec: ModelSpec, nth: int, have: int) -> float:
        """Share of the model's requests that its nth replica serves, for each GPU."""
        need = wish.need if wish.need is not None else wish.replicas
        if need <= 0.0:
            return 0.0
        if nth <= min(have, ceil(need * STILL_NEEDED)):
            return spec.priority * self.keep_margin * min(1.0, 1.0 / need) / spec.gpus
        return spec.priority * max(0.0, min(1.0, need - (nth - 1))) / need / spec.gpus


def _explain(wish: Wish, given: int, have: int) -> Target:
    if given >= wish.replicas:
        return Target(given, wish.reason, wish.detail)
    return Target(given, Reason.YIELD if given < have else Reason.SHARE, f"wants {wish.replicas}; {wish.detail}")
