"""Ray Serve's REST interface, the part raylane uses. Raises FailedError when the cluster does not answer well."""

import http.client
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.node import token_path
from raylane.cluster.proxies import direct
from raylane.cluster.redact import redacted
from raylane.deployments.rollout.applications import MODEL_PREFIX, REPLICA, Json

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class AppStatus:
    """One application as Serve sees it."""

    name: str
    status: str  # DEPLOYING, RUNNING, DEPLOY_FAILED, UNHEALTHY, DELETING, NOT_STARTED
    message: str  # the application's, then those of its deployments
    target_replicas: int | None
    running_replicas: int


@dataclass(frozen=True)
class ServeState:
    """Applications put through the REST interface, and what became of all applications."""

    configs: dict[str, Json]
    statuses: dict[str, AppStatus]
    options: Json  # proxy and HTTP options that Serve runs with

    def model_targets(self) -> dict[str, int]:
        """Target replicas of each deployed model."""
        return {
            name.removeprefix(MODEL_PREFIX): status.target_replicas
            for name, status in self.statuses.items()
            if name.startswith(MODEL_PREFIX) and status.target_replicas is not None
        }


class ServeApi:
    """A client for one cluster's dashboard address, with its token if it has one.

    No single wait for the dashboard lasts longer than `timeout_s`; a call may wait more than once.
    """

    def __init__(self, dashboard_url: str, timeout_s: float = TIMEOUT_S) -> None:
        self._url = dashboard_url.rstrip("/")
        self._timeout_s = timeout_s
        self._opener = direct()

    def state(self) -> ServeState:
        details = self._call("GET", "/api/serve/applications/?api_type=declarative", None)
        everything = self._call("GET", "/api/serve/applications/", None)
        running = details.get("applications", {})
        configs = {name: app["deployed_app_config"] for name, app in running.items() if app["deployed_app_config"]}
        statuses = {name: _status(name, app) for name, app in everything.get("applications", {}).items()}
        return ServeState(configs, statuses, _options(everything))

    def put(self, applications: list[Json], options: Json) -> None:
        """Make these the applications of the cluster."""
        self._call("PUT", "/api/serve/applications/", {**options, "applications": applications})

    def scale(self, model: str, replicas: int) -> None:
        """Set the target replicas of a model."""
        path = f"/api/v1/applications/{MODEL_PREFIX}{model}/deployments/{REPLICA}/scale"
        self._call("POST", path, {"target_num_replicas": replicas})

    def _call(self, method: str, path: str, body: Json | None) -> Json:
        headers = {"Content-Type": "application/json", **_authorization()}
        data = None if body is None else json.dumps(body).encode()
        what = f"{method} {self._url}{path}"
        try:
            request = urllib.request.Request(self._url + path, data=data, headers=headers, method=method)  # noqa: S310
            with self._opener.open(request, timeout=self._timeout_s) as reply:
                answer: object = json.loads(reply.read() or b"{}")
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:2000]
            raise FailedError(f"{what}: {error.code}: {said or error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise FailedError(f"{what}: no answer: {error}") from error
        except ValueError as error:  # of JSON, or of an address that is no URL
            raise FailedError(f"{what}: no answer of Ray's dashboard: {error}") from error
        if not isinstance(answer, dict):
            raise FailedError(f"{what}: no answer of Ray's dashboard: {str(answer)[:200]}")
        return answer


def _status(name: str, app: Json) -> AppStatus:
    deployments = app["deployments"].values()
    messages = [app["message"], *(deployment["message"] for deployment in deployments)]
    first = next(iter(deployments), None)
    return AppStatus(
        name=name,
        status=app["status"],
        message=redacted("\n".join(message for message in messages if message)),
        target_replicas=None if first is None else first["target_num_replicas"],
        running_replicas=sum(r["state"] == "RUNNING" for d in deployments for r in d["replicas"]),
    )


def _options(details: Json) -> Json:
    """Serve's own settings as they are; raylane's gateway needs none of its proxies."""
    if not details.get("controller_info", {}).get("node_id"):
        return {"proxy_location": "Disabled"}
    http = details.get("http_options") or {}
    return {
        "proxy_location": details["proxy_location"],
        "http_options": {k: v for k, v in http.items() if v is not None},
    }


def _authorization() -> dict[str, str]:
    """The cluster's token, found where Ray's own commands look for it. Raises UsageError for what cannot be one."""
    token, source = os.environ.get("RAY_AUTH_TOKEN"), "RAY_AUTH_TOKEN"
    if token is None and os.environ.get("RAY_AUTH_MODE") != "disabled":
        path = token_path()
        source = str(path)
        token = path.read_text(errors="replace") if path.is_file() else None
    if token is None:
        return {}
    if not token.strip().isascii() or not token.strip().isprintable():
        raise UsageError(f"{source}: not a token: it has other characters than printable ASCII")
    return {"Authorization": f"Bearer {token.strip()}"}


def dashboard_url(context: Any) -> str:
    """The dashboard's address of the cluster this process is connected to (`context` is what ray.init returned)."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS") or context.dashboard_url
    if not address:
        raise FailedError("the Ray cluster has no dashboard; raylane deploys through it (start Ray with its dashboard)")
    return address if address.startswith("http") else f"http://{address}"
