"""What all parts of the proof share: the cluster, where results go, and whether models are tiny."""

import json
import time
from pathlib import Path
from typing import Any

from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.directory.reports import ReplicaReport, ReplicaState
from raylane.deployments.rollout.applications import MODEL_PREFIX
from raylane.deployments.rollout.rollout import deploy, snapshot
from raylane.deployments.rollout.serve_api import ServeApi
from studies.h200 import configs
from studies.h200.gpu_use import Gpus

URL = f"http://127.0.0.1:{configs.PORT}"
READY_WITHIN_S = 420.0


class Proof:
    """What all parts share: the cluster, where results go, and whether models are tiny."""

    def __init__(self, out: Path, tiny: bool, api: ServeApi, also: frozenset[str], gpus: Gpus) -> None:
        self.out = out
        self.gpus = gpus
        self.runs = Path("runs/h200")
        self.tiny = tiny
        self.api = api
        self.also = also
        self.pairs = 3
        self.clients: frozenset[int] = frozenset()
        self.stages: frozenset[str] = frozenset()

    def write(self, name: str, result: Any) -> None:
        """Keep a part's result at once; a later part may fail."""
        text = json.dumps(result, indent=1, default=str)
        (self.out / f"{name}.json").write_text(text)
        print(f"== {name} at {time.strftime('%H:%M:%S')}: {text[-300:]}", flush=True)

    def window_s(self, seconds: float) -> float:
        return 4.0 if self.tiny else seconds

    def up(self, config: DeploymentConfig, origin: str) -> float:
        """Deploy and wait; seconds until every model answered."""
        began_s = time.monotonic()
        deploy(config, self.api, origin, lambda statuses: None, READY_WITHIN_S)
        return time.monotonic() - began_s

    def replicas(self) -> list[ReplicaReport]:
        known = snapshot()
        return [] if known is None else [r for r in known.replicas if r.state is ReplicaState.READY]

    def scale(self, model: str, replicas: int) -> float:
        """Scale a model and wait; seconds until as many are ready."""
        began_s = time.monotonic()
        self.api.scale(model, replicas)
        while len([r for r in self.replicas() if r.model == model]) != replicas:
            if time.monotonic() - began_s > READY_WITHIN_S:
                raise TimeoutError(f"{MODEL_PREFIX}{model}: not at {replicas} replicas")
            time.sleep(0.2)
        return time.monotonic() - began_s
