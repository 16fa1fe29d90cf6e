"""The deployment config that is on the cluster, kept in Ray's own key-value store: it outlives every actor of ours.

The store is the GCS's (ray.experimental.internal_kv, the same in Ray 2.58 and 2.60). It lives as long as the Ray
cluster, and longer where the GCS keeps its tables in Redis. Reading and writing need a process connected to Ray.
"""

import json
import time
from contextlib import suppress

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.slo import SloLimits

KEY = b"deployed"
NAMESPACE = b"raylane"
READ_EVERY_S = 10.0


def remember(config: DeploymentConfig | None) -> None:
    """Make this the deployed config; None: nothing is deployed any more."""
    if config is None:
        _internal_kv_del(KEY, namespace=NAMESPACE)
    else:
        _internal_kv_put(KEY, to_bytes(config), namespace=NAMESPACE)


def recall() -> DeploymentConfig | None:
    """The deployed config with everything that applications leave out (replica bounds, slo, ...), or None.

    Raises UsageError when another version of raylane wrote it in a way that this one does not understand.
    """
    kept = _internal_kv_get(KEY, namespace=NAMESPACE)
    return None if kept is None else DeploymentConfig.from_data(json.loads(kept), "the deployed config")


class DeployedLimits:
    """The limits of a model's SLO as it is deployed now: its application does not know it, so that an edit restarts
    nothing. Read anew every READ_EVERY_S; None where the model has no SLO."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._read_s = float("-inf")
        self._limits: SloLimits | None = None

    def __call__(self) -> SloLimits | None:
        if time.monotonic() - self._read_s >= READ_EVERY_S:
            self._read_s = time.monotonic()
            with suppress(Exception):  # an edge: without an answer, or with another version's, the last one holds
                self._limits = limits_of(recall(), self._model)
        return self._limits


def limits_of(config: DeploymentConfig | None, model: str) -> SloLimits | None:
    """The limits of a model's SLO; None without one, or where the model is not deployed."""
    found = None if config is None else config.models.get(model)
    return None if found is None or found.slo is None else found.slo.limits()


def deployed_names() -> tuple[str, ...]:
    """Names of the deployed models, also those of a config that recall() cannot read."""
    kept = _internal_kv_get(KEY, namespace=NAMESPACE)
    return () if kept is None else tuple(json.loads(kept)["models"])


def to_bytes(config: DeploymentConfig) -> bytes:
    """The config as it is kept."""
    return json.dumps(config.model_dump(mode="json", exclude_defaults=True)).encode()


def only(config: DeploymentConfig, names: frozenset[str]) -> DeploymentConfig | None:
    """The config with these of its models; None when none is left."""
    models = {name: model for name, model in config.models.items() if name in names}
    return config.model_copy(update={"models": models}) if models else None
