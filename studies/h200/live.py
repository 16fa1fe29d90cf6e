"""A scaled deployment under watch: what the stages of the autoscaling part share."""

import itertools
import json
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import ray

from raylane.autoscaling.live.ray_scaler import LOG_NAME, follow, read_fleet, scaler_status
from raylane.autoscaling.live.specs import model_specs
from raylane.cluster.leases import runtime_folder
from raylane.cluster.proxies import direct
from raylane.deployments.directory.reports import ReplicaReport
from raylane.deployments.engines.load import read_page
from raylane.deployments.engines.vllm.engine import NAMES
from raylane.deployments.rollout.rollout import deploy
from studies.h200 import configs
from studies.h200.course import Course
from studies.h200.gpu_use import checked
from studies.h200.senders import Ended, Sender, Sending
from studies.h200.session import Proof

MODEL = "llama-8b"
URL = f"http://127.0.0.1:{configs.PORT}"
INPUT_TOKENS, OUTPUT_TOKENS = 512, 128
ALL_WITHIN_S = 540.0
ONE_READY = (0, 1, 0)
CHECKED_EVERY_S = 10.0

Stage = Callable[["Live"], dict[str, Any]]


class Live:
    """The deployment, the watch over it, and what was found."""

    def __init__(self, proof: Proof) -> None:
        self.proof, self.api, self.gpus = proof, proof.api, proof.gpus
        self.config = configs.scaled(proof.tiny, to_zero=not proof.stages or bool({"wake", "crowd"} & proof.stages))
        self.address: str = ray.get_runtime_context().gcs_address
        self.course = Course(MODEL)
        self.began_at = time.time()
        spec = model_specs(self.config, read_fleet().card, "the proof")[MODEL]
        self.limits = spec.slo.limits()
        self.carries_rps = spec.profile.requests_per_s(INPUT_TOKENS, OUTPUT_TOKENS)
        self.result: dict[str, Any] = {
            "simulated": proof.tiny,
            "began_at": self.began_at,
            "config": self.config.model_dump(mode="json", exclude_defaults=True),
            "profile": asdict(spec.profile),
            "one_replica_carries_rps": self.carries_rps,
        }
        self._numbers = itertools.count()

    def deploy(self) -> None:
        """Bring it up and watch it from then on."""
        began_s = time.monotonic()
        deploy(self.config, self.api, "autoscaling", lambda statuses: None, 200.0, follow)
        self.result["deployed_s"] = time.monotonic() - began_s
        self.course.start()

    def stage(self, stage: Stage) -> None:
        """Go through a stage and write what it found."""
        began_s = time.monotonic()
        try:
            found = stage(self)
        except Exception as error:  # an edge: the stages after it have results of their own
            found = {"failed_with": f"{type(error).__name__}: {error}"}
        found |= {"took_s": time.monotonic() - began_s, "scaler": self.belief()}
        self.result[stage.__name__] = found
        self.result |= {"log": self.log(), "course": self.course.rows, "wrong_gpus": sorted(self.course.wrong)}
        self.proof.write("autoscaling", self.result)

    def keep_logs(self) -> None:
        """The ends of the engines' logs, beside the results."""
        for log in sorted((runtime_folder() / "logs").glob("*.log")):
            (self.proof.out / f"engine-{log.name}").write_text(log.read_text()[-20_000:])

    def left_s(self, kept_s: float = 0.0) -> float:
        """Seconds until the part should be over, less those for what comes later."""
        return max(1.0, self.began_at + ALL_WITHIN_S - time.time() - kept_s)

    def log(self) -> list[dict[str, Any]]:
        """The autoscaler's own log."""
        file = runtime_folder() / LOG_NAME
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def belief(self) -> str | None:
        """What the autoscaler reckons with now, in its words."""
        status = scaler_status()
        return status["models"][0]["detail"] if status is not None and status["models"] else None

    def send(self, output_tokens: int, *, rate_rps: float | None = None, streams: int = 0) -> Sender:
        """Start a client."""
        number = next(self._numbers)
        sending = Sending(URL, MODEL, INPUT_TOKENS, output_tokens, rate_rps, streams, seed=number)
        folder = self.proof.runs.absolute() / f"autoscaling-{int(self.began_at)}"
        return Sender(sending, folder / f"{number}.jsonl")

    def load(self, times: float) -> list[Sender]:
        """That many times what one replica carries, from several clients."""
        clients = 1 if self.proof.tiny else 3
        rate_rps = times * self.carries_rps / clients
        return [self.send(OUTPUT_TOKENS, rate_rps=rate_rps) for _ in range(clients)]

    def replicas(self) -> list[ReplicaReport]:
        """The ready ones."""
        return [report for report in self.proof.replicas() if report.model == MODEL]

    def only_replica(self, within_s: float) -> ReplicaReport:
        """The only one there is, which the autoscaler may have yet to come to. Raises TimeoutError."""
        self.course.until(ONE_READY, within_s)
        (replica,) = self.replicas()
        return replica

    def checked(self, replica_id: str, uuids: Iterable[str] | None = None) -> dict[str, Any]:
        """What raylane and the driver say of its GPUs, once raylane has checked and its lease is `uuids`, if given."""
        deadline_s = time.monotonic() + 2 * CHECKED_EVERY_S
        while True:
            report = next(report for report in self.replicas() if report.replica_id == replica_id)
            right = uuids is None or report.gpu_uuids == tuple(uuids)
            if (right and report.held_gpus is not None) or self.proof.tiny or time.monotonic() > deadline_s:
                return checked(report, self.gpus.held(replica_id))
            time.sleep(0.5)

    def page(self, replica: ReplicaReport) -> str:
        """The engine's own metrics."""
        headers = {"Authorization": f"Bearer {replica.api_key}"}
        asked = urllib.request.Request(f"{replica.url}/metrics", headers=headers)  # noqa: S310 - our own engine
        with direct().open(asked, timeout=30) as reply:
            text: bytes = reply.read()
        return text.decode()

    def missed_by(self, page: str) -> float | None:
        """Misses as raylane reads them off an engine's metrics."""
        return read_page(page, NAMES, self.limits).missed_total

    def missed_total(self) -> float | None:
        """The same as the directory has it of the only replica."""
        (replica,) = self.replicas()
        return replica.load.missed_total


def cold_starts() -> float:
    """The gateway's own count."""
    with direct().open(f"{URL}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    counted = (line for line in lines if line.startswith("raylane_gateway_cold_starts_total{") and MODEL in line)
    return sum(float(line.rsplit(" ", 1)[1]) for line in counted)


def stop(senders: Iterable[Sender]) -> list[Ended]:
    """All requests of these senders, once they have ended."""
    senders = list(senders)
    for sender in senders:
        sender.tell()
    return [one for sender in senders for one in sender.stop()]
