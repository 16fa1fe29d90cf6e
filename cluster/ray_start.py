"""One host's `ray start` as data: labels, command line, environment. Pure.

Option names and environment variables are those of Ray 2.58 to 2.60.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from raylane.cluster.addresses import NAMED_HOST, in_url, is_bracketed, is_ipv6, split_address
from raylane.cluster.domains import domains
from raylane.cluster.errors import UsageError
from raylane.cluster.hosts import Host, LinkLevel
from raylane.cluster.proxies import without_proxy
from raylane.cluster.ray_driver import OF_ANOTHER_RAY

MARK = "RAYLANE_NODE"  # in the environment of every process of this host's Ray, by which `node down` knows them
GCS_PORT = 6379
DASHBOARD_PORT = 8265
RECONNECT_S = 600  # how long a host works on without the head; Ray's own 60 s takes the whole cluster down with it
LABEL_LENGTH = 63  # Kubernetes' rule for label values, which Ray follows
CLUSTER_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")  # Ray keeps '@' for itself
LEVELS = list(LinkLevel)

SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_S),
    # Serve fills hosts one after the other, so that free GPUs lie together and a tensor-parallel pair finds room.
    "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY": "1",
    # With pack scheduling Serve from 2.60 on empties half-used hosts after 300 s of quiet by restarting replicas.
    "RAY_SERVE_NODE_COMPACTION_DELAY_S": "1e9",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default; silences a warning
    "SPT_NOENV": "1",  # setproctitle, by which Ray names its agents, would wipe out the environment that /proc shows
}
NOT_PASSED_ON = (
    *(name for name in OF_ANOTHER_RAY if name != "RAY_TMPDIR"),
    "OMP_NUM_THREADS",  # the cluster launcher exports 1 in its shells; engines would run on one core
    "PYTHONWARNINGS",
)


@dataclass(frozen=True)
class Redis:
    """Where the head keeps its state, so that it can be replaced. `password` may be None."""

    address: str  # [rediss://]HOST:PORT, as Ray wants it
    username: str | None
    password: str | None
    cluster_id: str  # keeps clusters on one Redis apart; a new one starts empty


@dataclass(frozen=True)
class NodeRequest:
    """What the user asked this host to be."""

    head_address: str | None  # HOST:PORT of the head to join; None makes this host the head
    own_address: str | None = None  # None: the address of the route to the head
    port: int = GCS_PORT
    dashboard_host: str = "127.0.0.1"
    dashboard_port: int = DASHBOARD_PORT
    redis: Redis | None = None
    autoscaling_config: Path | None = None  # written by the cluster launcher on the head
    cpus: int | None = None  # what Ray may hand out; None: what the host has
    temp_dir: Path | None = None


def host_labels(host: Host) -> dict[str, str]:
    """Ray node labels: the host's name, its GPU model ("mixed" for several) and its link class.

    The link class is the level that a pair of GPUs has at least, when pairs are the host's domains. What is unknown
    or does not exist has no label.
    """
    labels = {"raylane/host": label_value(host.name)}
    models = {gpu.name for gpu in host.gpus}
    if models:
        labels["raylane/gpu"] = label_value(models.pop()) if len(models) == 1 else "mixed"
    levels = [domain.level for domain in domains(host) if domain.level is not None]
    if levels:
        labels["raylane/link"] = str(max(levels, key=LEVELS.index))
    return labels


def label_value(text: str) -> str:
    """The text as Ray accepts it: letters, digits, '-', '_' and '.', at most 63, ends alphanumeric."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:LABEL_LENGTH]
    return plain.strip("-_.") or "unnamed"


def usable_gpus(host: Host) -> int:
    """GPUs that Ray may count: all but those cut up by MIG, which no replica is given."""
    return sum(not gpu.mig for gpu in host.gpus)


def start_command(request: NodeRequest, host: Host) -> tuple[str, ...]:
    """The arguments of `ray start`."""
    labels = ",".join(f"{key}={value}" for key, value in host_labels(host).items())
    options = [
        *("--num-gpus", str(usable_gpus(host)), "--labels", labels, "--disable-usage-stats"),
        *("--dashboard-agent-listen-port", "0"),  # Ray's fixed 52365 would clash with another Ray on this host
        *option("--node-ip-address", request.own_address),
        *option("--num-cpus", request.cpus),
        *option("--temp-dir", request.temp_dir),
    ]
    if request.head_address is not None:
        return ("--address", request.head_address, *options)
    return (
        *("--head", "--port", str(request.port), *options),
        *("--include-dashboard", "true"),
        *("--dashboard-host", request.dashboard_host, "--dashboard-port", str(request.dashboard_port)),
        *option("--autoscaling-config", request.autoscaling_config),
        *redis_options(request.redis),
    )


def option(name: str, value: object | None) -> tuple[str, ...]:
    return () if value is None else (name, str(value))


def redis_options(redis: Redis | None) -> tuple[str, ...]:
    """User and password; Ray takes them on its command line only, where every user of the host can read them."""
    if redis is None:
        return ()
    return (*option("--redis-username", redis.username), *option("--redis-password", redis.password))


def start_environment(
    base: Mapping[str, str], request: NodeRequest, mark: str, inside: Iterable[str] = ()
) -> dict[str, str]:
    """The environment of this host's Ray: the caller's, the settings above, the mark and where Redis is.

    Requests to the hosts `inside` the cluster, as far as they are known, go through no proxy.
    """
    environment = {name: value for name, value in base.items() if name not in NOT_PASSED_ON}
    environment |= without_proxy(environment, inside)
    environment |= SETTINGS | {MARK: mark}
    environment["RAY_USAGE_STATS_ENABLED"] = "0"  # the launcher exports 1
    if request.autoscaling_config is not None:
        environment["RAY_enable_autoscaler_v2"] = "0"  # takes the head for a worker, and one worker is never started
    if request.redis is not None:
        environment["RAY_REDIS_ADDRESS"] = request.redis.address
        environment["RAY_external_storage_namespace"] = request.redis.cluster_id
    return environment


def parse_head_address(text: str) -> str:
    """HOST:PORT, with Ray's usual port where none is given. Raises UsageError for anything else."""
    address = f"{text}:{GCS_PORT}" if is_bracketed(text) or ":" not in text else text
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise UsageError(f"--address: expected HOST or HOST:PORT of the head (got {text!r}): {error}") from error
    check_not_loopback6(host, "--address")
    return f"{in_url(host)}:{port}"


def parse_own_address(text: str, source: str) -> str:
    """An own address as Ray takes it, an IPv6 one without brackets. Raises UsageError for what is none."""
    host = text[1:-1] if is_bracketed(text) else text
    if not NAMED_HOST.fullmatch(host) and not is_ipv6(host):
        raise UsageError(f"{source}: expected an address of this host, without a port (got {text!r})")
    check_not_loopback6(host, source)
    return host


def check_not_loopback6(host: str, source: str) -> None:
    """UsageError for ::1, in whose place Ray takes the host's IPv4 address."""
    if is_ipv6(host) and ipaddress.ip_address(host).is_loopback:
        raise UsageError(f"{source}: {host}: Ray runs on no IPv6 loopback address; give another one, or 127.0.0.1")


def parse_redis(url: str, password: str | None, cluster_id: str) -> Redis:
    """Redis from redis://[USER@]HOST:PORT or rediss:// (TLS); the password comes apart, never in the URL."""
    parts = urlsplit(url if "://" in url else f"redis://{url}")
    if parts.password is not None:
        raise UsageError("--redis: leave the password out of the URL and set RAY_REDIS_PASSWORD instead")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme not in ("redis", "rediss") or not host or not port or parts.path not in ("", "/"):
        raise UsageError(f"--redis: expected redis://[USER@]HOST:PORT or rediss://... (got {url!r})")
    if not CLUSTER_ID.match(cluster_id):
        raise UsageError(f"--redis-cluster: letters, digits, '.', '_' and '-' only (got {cluster_id!r})")
    scheme = "rediss://" if parts.scheme == "rediss" else ""
    return Redis(f"{scheme}{in_url(host)}:{port}", parts.username, password or None, cluster_id)
