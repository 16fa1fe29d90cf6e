"""One request on its way through a worker, and the replicas that could not be reached lately."""

import time
from dataclasses import dataclass

from aiohttp import web

from raylane.deployments.gateway.counters import Counters

AVOIDED_FOR_S = 5.0  # a vanished host costs the connect timeout each time it is tried


@dataclass(eq=False)
class Asked:
    """A request and what became of it so far."""

    http: web.Request
    model: str
    body: bytes | bytearray
    streamed: bool
    counters: Counters
    began_s: float
    admitted: bool = False
    sent_to: frozenset[str] = frozenset()  # replicas that had it and gave no byte
    unreachable: frozenset[str] = frozenset()  # replicas that could not be given it
    problem: str = ""  # what went wrong with the last of these
    problem_s: float = 0.0  # when something first went wrong
    refusal: str = ""  # why it could not wait, or not any longer

    def failed(self, problem: str, now_s: float) -> None:
        self.problem = problem
        self.problem_s = self.problem_s or now_s

    def sent(self, replica_id: str) -> None:
        """It is with this replica and has no first byte; counted as admitted the first time."""
        self.counters.admitted += not self.admitted
        self.admitted = True
        if self.streamed:
            self.counters.sent(replica_id, id(self), time.monotonic())

    def answered(self, replica_id: str) -> None:
        """Its first byte came from this replica, or never will."""
        if self.streamed:
            self.counters.answered(replica_id, id(self))


class Unreachables:
    """Replicas to which no connection could be had in the last AVOIDED_FOR_S, and when each last showed life."""

    def __init__(self) -> None:
        self._until_s: dict[str, float] = {}
        self._connected_s: dict[str, float] = {}

    def remember(self, replica_id: str) -> None:
        self._until_s[replica_id] = time.monotonic() + AVOIDED_FOR_S

    def knock(self, replica_id: str) -> None:
        """Somebody tries again: the others wait for what comes of it."""
        if replica_id in self._until_s:
            self.remember(replica_id)

    def forget(self, replica_id: str) -> None:
        self._until_s.pop(replica_id, None)

    def connected(self, replica_id: str) -> None:
        """A new connection was had, or an answer came: what cannot reach it waits in a line, not for a lost host."""
        self._connected_s[replica_id] = time.monotonic()

    def last_connected_s(self, replica_ids: frozenset[str]) -> float:
        """When one of these last took a new connection or answered; 0 for never."""
        return max((self._connected_s.get(replica_id, 0.0) for replica_id in replica_ids), default=0.0)

    def keep_only(self, replica_ids: frozenset[str]) -> None:
        self._until_s = {replica: until_s for replica, until_s in self._until_s.items() if replica in replica_ids}
        self._connected_s = {replica: at_s for replica, at_s in self._connected_s.items() if replica in replica_ids}

    def now(self) -> frozenset[str]:
        if not self._until_s:
            return frozenset()
        now_s = time.monotonic()
        return frozenset(replica for replica, until_s in self._until_s.items() if now_s < until_s)
