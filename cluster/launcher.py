"""Hosts of a Ray cluster launcher config (provider `local`): commands over ssh, and a `down` that stops the workers.

`ray down` stops the head by process name and leaves the workers running. Here every host runs `raylane node down`,
workers first. What a host is told is one of the constants below: nothing of the config gets into a shell.
"""

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.node import launcher_config, launcher_files

NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")  # never begins with '-', which ssh would take for an option
ADDRESS = re.compile(r"^[A-Za-z0-9][A-Za-z0-9.:-]*$")
CONNECT_S = 10
COMMAND_S = 120.0
# A login shell that also reads ~/.bashrc, as the launcher's own commands do: there PATH finds raylane.
IN_SHELL = 'bash --login -i -c "source ~/.bashrc; {}"'
NODE_DOWN = IN_SHELL.format("raylane node down")
RECEIVE_AND_DEPLOY = IN_SHELL.format("umask 077; cat > ~/raylane-deploy.yaml; raylane deploy ~/raylane-deploy.yaml")
COUNT_HOSTS = IN_SHELL.format("raylane node hosts --json")


@dataclass(frozen=True)
class LauncherConfig:
    """What is needed of a launcher config to reach its hosts."""

    path: Path
    cluster_name: str
    head: str
    workers: tuple[str, ...]
    user: str
    key: Path | None


@dataclass(frozen=True)
class Stopped:
    """What came of stopping one host."""

    address: str
    ok: bool
    message: str


Run = Callable[[Sequence[str], bytes, float], "subprocess.CompletedProcess[bytes]"]


def read_launcher_config(path: Path) -> LauncherConfig:
    """The hosts of ray-cluster.yaml. Raises UsageError naming the key for what raylane cannot reach by plain ssh."""
    config = launcher_config(path)
    provider, auth = section(config, "provider", path), section(config, "auth", path)
    if provider.get("type") != "local":
        raise UsageError(f"{path}: provider.type: only 'local' has fixed hosts (got {provider.get('type')!r})")
    if config.get("docker"):
        raise UsageError(f"{path}: docker: raylane stops hosts over ssh, not inside launcher containers")
    if "ssh_proxy_command" in auth:
        raise UsageError(f"{path}: auth.ssh_proxy_command: put a ProxyJump for these hosts into ~/.ssh/config instead")
    workers = provider.get("worker_ips")
    if not isinstance(workers, list):
        raise UsageError(f"{path}: provider.worker_ips: a list of addresses is needed (got {workers!r})")
    return LauncherConfig(
        path=path,
        cluster_name=checked(config.get("cluster_name"), NAME, f"{path}: cluster_name"),
        head=checked(provider.get("head_ip"), ADDRESS, f"{path}: provider.head_ip"),
        workers=tuple(checked(ip, ADDRESS, f"{path}: provider.worker_ips.{i}") for i, ip in enumerate(workers)),
        user=checked(auth.get("ssh_user"), NAME, f"{path}: auth.ssh_user"),
        key=key_file(auth.get("ssh_private_key"), path),
    )


def section(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    value = config.get(name)
    if not isinstance(value, dict):
        raise UsageError(f"{path}: {name}: a mapping is needed (got {value!r})")
    return value


def checked(value: object, allowed: re.Pattern[str], where: str) -> str:
    if not isinstance(value, str) or not allowed.match(value):
        raise UsageError(f"{where}: expected text like {allowed.pattern} (got {value!r})")
    return value


def key_file(value: object, path: Path) -> Path | None:
    if value is None:
        return None
    key = Path(str(value)).expanduser()
    if not key.is_file():
        raise UsageError(f"{path}: auth.ssh_private_key: no such file: {key}")
    return key


def ssh_command(config: LauncherConfig, address: str, remote: str) -> tuple[str, ...]:
    """ssh that asks nothing and gives up on a silent host. New host keys are learnt, changed ones refused."""
    return (
        *("ssh", "-T", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new"),
        *("-o", f"ConnectTimeout={CONNECT_S}", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
        *(() if config.key is None else ("-o", "IdentitiesOnly=yes", "-i", str(config.key))),
        *("-l", config.user, "--", address, remote),
    )


def run(command: Sequence[str], text: bytes, timeout_s: float) -> "subprocess.CompletedProcess[bytes]":
    """Run a command with `text` on its standard input; a late one ends with status 124."""
    try:
        return subprocess.run(command, input=text, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as late:
        return subprocess.CompletedProcess(
            command, 124, late.stdout or b"", f"no end within {timeout_s:.0f} s".encode()
        )
    except FileNotFoundError as error:
        raise FailedError(f"{command[0]} is not installed here: {error}") from error


def stop_hosts(config: LauncherConfig, run: Run = run) -> list[Stopped]:
    """Stop the workers, then the head, then the workers once more: a living head restarts workers that it lost.

    One result for each host, the head's first. Nothing is raised for a host that cannot be reached.
    """

    def stop(address: str) -> Stopped:
        done = run(ssh_command(config, address, NODE_DOWN), b"", COMMAND_S)
        said = done.stdout.decode(errors="replace").strip()
        return Stopped(address, done.returncode == 0, said if done.returncode == 0 else said or why(done.stderr))

    with ThreadPoolExecutor(max_workers=16) as pool:
        first = list(pool.map(stop, config.workers))
        head = stop(config.head)
        last = list(pool.map(stop, config.workers))
    return [head, *(one if two.ok else two for one, two in zip(first, last, strict=True))]


def hosts_alive(config: LauncherConfig, run: Run = run) -> int | None:
    """How many hosts the head knows to be alive; None while it does not answer."""
    done = run(ssh_command(config, config.head, COUNT_HOSTS), b"", COMMAND_S)
    try:
        return len(json.loads(done.stdout)) if done.returncode == 0 else None
    except ValueError:
        return None


def deploy_there(config: LauncherConfig, deployment: bytes) -> int:
    """Send a deployment config to the head and run `raylane deploy` there, its output here; its exit status."""
    return subprocess.run(
        ssh_command(config, config.head, RECEIVE_AND_DEPLOY), input=deployment, check=False
    ).returncode


def why(stderr: bytes) -> str:
    """The last line that ssh or the host said, without what an interactive shell says about its missing terminal."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines()]
    told = [line for line in lines if line and "terminal process group" not in line and "no job control" not in line]
    return told[-1] if told else "no answer"


def forget(config: LauncherConfig) -> None:
    """Remove what the launcher remembers on this machine about the hosts, so that the next `ray up` starts them all."""
    for path in launcher_files(config.path):
        with suppress(FileNotFoundError):
            Path(path).unlink()
