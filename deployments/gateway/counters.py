"""What one worker process counts of one model's traffic."""

from dataclasses import dataclass, field

from raylane.deployments.directory.reports import ModelTraffic


@dataclass
class Counters:
    """Counters since the process started, and when the requests without a first byte were sent to their replicas."""

    received: int = 0
    completed: int = 0
    failed: int = 0
    admitted: int = 0
    rejected: int = 0
    cancelled: int = 0
    open: int = 0
    _sent_s: dict[str, dict[int, float]] = field(default_factory=dict)  # replica -> request -> when, oldest first

    def finished(self, outcome: str, *, rejected: bool) -> None:
        """One request less is open; `outcome` as the metrics have it."""
        self.open -= 1
        self.rejected += rejected
        self.completed += outcome == "200"
        self.cancelled += outcome == "cancelled"
        self.failed += not rejected and outcome not in ("200", "cancelled")

    def sent(self, replica_id: str, request: int, now_s: float) -> None:
        """A streamed request has gone to this replica and waits for its first byte."""
        self._sent_s.setdefault(replica_id, {})[request] = now_s

    def answered(self, replica_id: str, request: int) -> None:
        """Its first byte came, or never will."""
        waiting = self._sent_s[replica_id]
        del waiting[request]
        if not waiting:
            del self._sent_s[replica_id]

    def frozen(self, now_s: float, held: int, oldest_held_age_s: float | None) -> ModelTraffic:
        return ModelTraffic(
            received=self.received,
            completed=self.completed,
            failed=self.failed,
            open=self.open,
            admitted=self.admitted,
            rejected=self.rejected,
            cancelled=self.cancelled,
            held=held,
            oldest_held_age_s=oldest_held_age_s,
            first_byte_wait_s={replica: now_s - next(iter(sent.values())) for replica, sent in self._sent_s.items()},
        )
