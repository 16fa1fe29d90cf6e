"""This host's part of the Ray cluster: start it, know whether it runs, and stop it without touching any other Ray.

Every process of it carries one random mark in its environment, and a file in the host's runtime folder keeps the mark:
what is stopped is what carries it. `ray stop` would end every Ray of the host by process name.
"""

import fcntl
import ipaddress
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from raylane.cluster.addresses import split_address
from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.hosts import Host
from raylane.cluster.leases import using
from raylane.cluster.processes import end_processes_with, name_of, processes_with
from raylane.cluster.ray_driver import FOLDER_BYTES, default_folder
from raylane.cluster.ray_start import GCS_PORT, MARK, NodeRequest, start_command, start_environment

START_TRIES = 2
START_TIMEOUT_S = 120.0
HEAD_ANSWERS_S = 60.0  # a head may be starting at the same time
STAGE_S = 15.0  # for each stage of a stop: the raylet with its workers, the other services, the head's store
POLL_S = 0.1
TOKEN_BYTES = 32
AUTH_MODES = ("token", "disabled")
OUTPUT_LINES = 15
ROUTE_TO = ("8.8.8.8", 53)  # where Ray looks for the route that tells a head's own address


@dataclass(frozen=True)
class NodeState:
    """The Ray of this host as `node up` started it."""

    mark: str
    head: bool
    head_address: str  # HOST:PORT; empty until Ray has started
    own_address: str
    launcher_files: tuple[str, ...] = ()  # what Ray's cluster launcher keeps on its head about the cluster

    @property
    def starting(self) -> bool:
        """Recorded before Ray started. Nobody is at it any more when this is read with the host's lock held."""
        return not self.head_address


def up(request: NodeRequest, host: Host, folder: Path) -> tuple[NodeState, bool]:
    """Start this host's Ray; its state, and whether it was started now (False: it was running already).

    A Ray of ours that lost its raylet, a head that lost its store, or a start that was cut short is cleared away and
    started anew. Raises UsageError without a token, FailedError when this host already belongs to another cluster of
    ours or Ray fails.
    """
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        shown = os.environ["CUDA_VISIBLE_DEVICES"]
        raise UsageError(f"CUDA_VISIBLE_DEVICES is set ({shown!r}): raylane hands out all GPUs of the host; unset it")
    token_file(create=request.head_address is None)
    with one_at_a_time(folder):
        before = read_state(folder)
        if before is not None and works(before):
            return checked_same(before, request), False
        if before is not None:
            end(before)
        if request.head_address is not None:
            wait_for_head(request.head_address)
        return start(request, host, folder), True


def check_ray_folder(request: NodeRequest) -> None:
    """UsageError where Ray cannot put its files and sockets. A worker that is given no folder takes the head's."""
    if request.temp_dir is None and request.head_address is not None:
        return
    folder, source = (request.temp_dir, "--temp-dir") if request.temp_dir is not None else default_folder()
    if not str(folder).isascii() or len(str(folder)) > FOLDER_BYTES:
        what = f"Ray's sockets need a path of at most {FOLDER_BYTES} ASCII letters"
        raise UsageError(f"{source}: {what} (got {str(folder)!r}); give --temp-dir a shorter one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{source}: Ray's folder {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{source}: Ray's folder {folder} cannot be written")


def wait_for_head(address: str) -> None:
    """Wait until something listens there: Ray itself would try for minutes. Raises FailedError."""
    place = split_address(address)
    deadline_s = time.monotonic() + HEAD_ANSWERS_S
    while True:
        try:
            socket.create_connection(place, timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise FailedError(f"no Ray head answers at {address}: {error}") from error
        time.sleep(POLL_S)


def checked_same(running: NodeState, request: NodeRequest) -> NodeState:
    """The running state if it is what is asked for. Raises FailedError naming both otherwise."""
    same_role = running.head == (request.head_address is None)
    if same_role and (running.head or resolved(running.head_address) == resolved(request.head_address or "")):
        return running
    role = "the head" if running.head else "a worker"
    wanted = "the head" if request.head_address is None else f"a worker of {request.head_address}"
    raise FailedError(
        f"this host already runs Ray as {role} of {running.head_address}, asked for: {wanted}; "
        "run `raylane node down` first"
    )


def resolved(address: str) -> tuple[str, int] | str:
    """The head's host as a number and its port, where it resolves."""
    with suppress(OSError, ValueError):
        return numeric(*split_address(address))
    return address


def numeric(host: str, port: int) -> tuple[str, int]:
    """One of the host's addresses, IPv4 before IPv6, and the port. Raises OSError when there is none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    best = min(found, key=lambda each: each[0] is not socket.AF_INET)
    return str(best[4][0]), port


def start(request: NodeRequest, host: Host, folder: Path) -> NodeState:
    """Start Ray and record what came of it; nothing is left running, nor recorded, when it fails.

    A start is tried again: the raylet of Ray 2.60 gives its agent 15 s, too few on a host that is busy or cold.
    """
    for attempt in range(1, START_TRIES):
        with suppress(FailedError):
            return start_once(request, host, folder, attempt)
    return start_once(request, host, folder, START_TRIES)


def start_once(request: NodeRequest, host: Host, folder: Path, attempt: int) -> NodeState:
    mark = secrets.token_hex(8)
    log = folder / "logs" / f"node-start-{attempt}.log"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *start_command(request, host)]
    write_state(expected(request, mark), folder)  # whoever comes next ends it if this process is killed meanwhile
    try:
        run_to_end(command, start_environment(os.environ, request, mark, hosts_inside(request)), log)
        state = described(request, mark)
        write_state(state, folder)
    except BaseException:
        end_processes_with(MARK, mark, grace_s=0.0)
        (folder / "node.json").unlink(missing_ok=True)
        raise
    return state


def hosts_inside(request: NodeRequest) -> tuple[str, ...]:
    """Hosts of the cluster as far as they are known here: this one, the head, and the launcher's workers."""
    head = None if request.head_address is None else split_address(request.head_address)
    own = request.own_address or own_address(head or ROUTE_TO)
    workers = None
    if request.autoscaling_config is not None:
        workers = launcher_config(request.autoscaling_config).get("provider", {}).get("worker_ips")
    listed = [str(worker) for worker in workers] if isinstance(workers, list) else []
    return tuple(dict.fromkeys(host for host in (own, head[0] if head else None, *listed) if host))


def own_address(place: tuple[str, int]) -> str | None:
    """This host's address on the route to another one; nothing is sent. None where there is no route."""
    with (
        suppress(OSError),
        socket.socket(socket.AF_INET6 if ":" in place[0] else socket.AF_INET, socket.SOCK_DGRAM) as s,
    ):
        s.connect(place)
        return str(s.getsockname()[0])
    return None


def run_to_end(command: list[str], environment: dict[str, str], log: Path) -> None:
    """Run a command that leaves services behind. Raises FailedError with the end of its output.

    The output goes to a file: services may keep a pipe open for as long as they live.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # neither Ctrl-C nor the end of an ssh session reaches the services
        )
        try:
            code = process.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise FailedError(f"Ray did not start within {START_TIMEOUT_S:.0f} s:\n{tail(log)}") from None
    if code != 0:
        raise FailedError(f"Ray did not start (exit status {code}):\n{tail(log)}")


def tail(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join([*lines[-OUTPUT_LINES:], f"(all of it: {log})"])


def expected(request: NodeRequest, mark: str) -> NodeState:
    """What can be said of a Ray that carries the mark before it has started."""
    files = launcher_files(request.autoscaling_config)
    return NodeState(mark, request.head_address is None, "", request.own_address or "", files)


def described(request: NodeRequest, mark: str) -> NodeState:
    """The state of the Ray that carries the mark, as its raylet was told. Raises FailedError when there is none."""
    raylets = [pid for pid in processes_with(MARK, mark) if name_of(pid) == "raylet"]
    if not raylets:
        raise FailedError("Ray started and its raylet ended at once; see the logs under its session folder")
    told = options_of(raylets[0])
    return NodeState(
        mark=mark,
        head=request.head_address is None,
        head_address=told.get("gcs-address", request.head_address or ""),
        own_address=told.get("node_ip_address", request.own_address or ""),
        launcher_files=launcher_files(request.autoscaling_config),
    )


def works(state: NodeState) -> bool:
    """Whether Ray has started and its raylet lives, on the head the store (gcs_server) too."""
    if state.starting:
        return False
    names = {name_of(pid) for pid in processes_with(MARK, state.mark)}
    return "raylet" in names and (not state.head or "gcs_server" in names)


def down(folder: Path) -> NodeState | None:
    """Stop what `up` started on this host, engines included; None when nothing was. Streams in flight are cut.

    A start that was cut short, since its `up` was killed, is stopped too.
    """
    with one_at_a_time(folder):
        state = read_state(folder)
        if state is None:
            return None
        alive = bool(processes_with(MARK, state.mark))
        end(state)
        for path in state.launcher_files:
            Path(path).unlink(missing_ok=True)
        (folder / "node.json").unlink()
        return state if alive else None


def end(state: NodeState) -> None:
    """End every process of this Ray: the raylet (its workers and their engines follow), services, then the store."""

    def members(fits: Callable[[str], bool]) -> list[int]:
        return [pid for pid in processes_with(MARK, state.mark) if fits(name_of(pid))]

    signal_all(members(lambda name: name == "raylet"), signal.SIGTERM)
    wait_for(lambda: not members(lambda name: name == "raylet" or name.startswith("ray::")))
    signal_all(members(lambda name: name != "gcs_server"), signal.SIGTERM)
    wait_for(lambda: not members(lambda name: name != "gcs_server"))
    signal_all(members(lambda name: name != "gcs_server"), signal.SIGKILL)  # a raylet without its head hangs on
    signal_all(members(lambda name: name == "gcs_server"), signal.SIGTERM)
    end_processes_with(MARK, state.mark, grace_s=STAGE_S)


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # gone meanwhile
            os.kill(pid, number)


def wait_for(done: Callable[[], bool]) -> None:
    """Wait until it is done or a stage's time is over."""
    deadline_s = time.monotonic() + STAGE_S
    while not done() and time.monotonic() < deadline_s:
        time.sleep(POLL_S)


def follow(state: NodeState, folder: Path) -> None:
    """Stay until this host's Ray is stopped or dies. Raises FailedError when it died; stops it when interrupted."""
    try:
        while works(state):
            time.sleep(1.0)
    except BaseException:
        down(folder)
        raise
    if read_state(folder) == state:
        down(folder)
        raise FailedError("this host's Ray ended by itself; its logs are under the session folder of Ray")


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    with using(folder):
        file = (folder / "node.lock").open("w")
    with file as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_state(folder: Path) -> NodeState | None:
    """What `up` recorded; None when there is nothing or it is not readable as that."""
    try:
        data = json.loads((folder / "node.json").read_text())
        return NodeState(**{**data, "launcher_files": tuple(data["launcher_files"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def write_state(state: NodeState, folder: Path) -> None:
    partial = folder / "node.json.partial"
    with using(folder):
        partial.write_text(json.dumps(asdict(state)))
        partial.rename(folder / "node.json")


def options_of(pid: int) -> dict[str, str]:
    """The --name=value options on a process's command line."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return {
        name: value for word in words if word.startswith("--") for name, _, value in [word[2:].partition("=")] if value
    }


def token_path() -> Path:
    """Where Ray looks for the cluster's token. Raises UsageError where that is not known."""
    try:
        return Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    except RuntimeError as error:  # no HOME, and a user without a name
        raise UsageError("HOME is not set: set it, or RAY_AUTH_TOKEN_PATH to the cluster's token file") from error


def expect_token() -> None:
    """Let Ray use the token where there is one; call it before Ray is imported. (Ray 2.60 would by itself.)

    Raises UsageError for a mode that Ray does not have and would take for none.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token")
    if mode.lower() not in AUTH_MODES:
        raise UsageError(f"RAY_AUTH_MODE: expected {' or '.join(AUTH_MODES)} (got {mode!r})")
    if token_path().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def token_file(*, create: bool) -> None:
    """Make sure that this host has the cluster's token. Raises UsageError when it has none and may not make one."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = token_path()
    if path.is_file() and path.read_text().strip():
        return
    if not create:
        raise UsageError(
            f"no cluster token at {path}: copy the head's file there (mode 0600), or set RAY_AUTH_TOKEN_PATH"
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:  # noqa: PTH123 - the mode is set
            file.write(secrets.token_hex(TOKEN_BYTES))
    except OSError as error:
        why = f"{error.strerror}; set RAY_AUTH_TOKEN_PATH to a file that can be made"
        raise UsageError(f"no cluster token at {path}, and none can be made: {why}") from error


def head_ip_of(autoscaling_config: Path) -> str:
    """The head's address in the launcher's config: Ray's autoscaler knows hosts by it. Raises UsageError."""
    provider = launcher_config(autoscaling_config).get("provider")
    head_ip = provider.get("head_ip") if isinstance(provider, dict) else None
    if not isinstance(head_ip, str):
        raise UsageError(f"{autoscaling_config}: provider.head_ip: an address is needed (got {head_ip!r})")
    with suppress(ValueError):
        return str(ipaddress.ip_address(head_ip))
    try:
        return numeric(head_ip, GCS_PORT)[0]
    except OSError as error:
        raise UsageError(f"{autoscaling_config}: provider.head_ip: {head_ip!r} does not resolve: {error}") from error


def launcher_files(autoscaling_config: Path | None) -> tuple[str, ...]:
    """The files in which Ray's `local` provider remembers which hosts it started; stale ones delay the next start."""
    if autoscaling_config is None:
        return ()
    name = launcher_config(autoscaling_config).get("cluster_name", "default")
    folder, _ = default_folder()
    return tuple(str(folder / Path(f"cluster-{name}.{end}").name) for end in ("state", "lock"))


def launcher_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot be read as a cluster config: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path}: not a cluster config (a mapping is expected)")
    return config
