"""Machines for tests: Linux namespaces with their own address, processes, mounts, host name, /tmp, /dev/shm and home.

Each is a process tree below one `unshare`, which dies with the test process. The network between them lives in the
first one (the operator's), so nothing outlives the processes: no links, no namespaces, no mounts.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = ("unshare", "nsenter", "setpriv", "ip", "ssh", "ssh-keygen", "rsync", "/usr/sbin/sshd")
HOME = "/tmp/home"
SHELL_AS_INIT = "while :; do sleep 1; done"  # bash reaps what is orphaned to it

# $1 host name, $2 folder with sshd_config, passwd and shadow, then folders that must stay visible under /tmp.
SET_UP = """
set -e
hostname "$1"; shift
settings=$1; shift
mkdir -p /run/sshd
keep=/mnt; mount -t tmpfs tmpfs $keep
for path in "$settings" "$@"; do mkdir -p "$keep$path"; mount --rbind "$path" "$keep$path"; done
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
for path in "$settings" "$@"; do mkdir -p "$path"; mount --rbind "$keep$path" "$path"; done
mkdir -m 700 /tmp/home /tmp/home/.ssh; touch /tmp/home/.bashrc
cp "$settings/key.pub" /tmp/home/.ssh/authorized_keys
for name in passwd shadow hosts resolv.conf; do mount --bind "$settings/$name" "/etc/$name"; done
ip link set lo up
touch "$settings/ready-$(hostname)"
"""


@dataclass(frozen=True)
class NamespacedHost:
    """One machine. `pid` is that of its first process, as this process sees it."""

    name: str
    address: str
    pid: int

    def command(self, *command: str, env: dict[str, str] | None = None) -> list[str]:
        """The command as run inside, with a small environment of its own."""
        path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        variables = {"HOME": HOME, "PATH": path, "USER": "root", "TERM": "dumb", "LANG": "C.UTF-8", **(env or {})}
        inside = ["nsenter", "-t", str(self.pid), "-n", "-p", "-m", "-u", "-i", "--"]
        return [*inside, "env", "-i", *(f"{key}={value}" for key, value in variables.items()), *command]

    def run(self, *command: str, timeout_s: float = 60.0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end."""
        return subprocess.run(
            self.command(*command), input=stdin, capture_output=True, text=True, timeout=timeout_s, cwd="/"
        )

    def processes(self) -> list[str]:
        """Command lines of the processes inside, without its shell, its sshd and this look."""
        listed = self.run("ps", "-eo", "args", "--no-headers").stdout.splitlines()
        own = (SHELL_AS_INIT, "sleep 1", "ps -eo", "sshd", "bash -c", "[")
        return [line for line in listed if not line.strip().startswith(own) and SHELL_AS_INIT not in line]


def missing() -> str | None:
    """Why namespaced hosts cannot be had here; None when they can."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return (
            f"not installed: {', '.join(absent)} (Debian: openssh-server, openssh-client, iproute2, rsync, util-linux)"
        )
    trial = subprocess.run(
        ["unshare", "-n", "-p", "-m", "-u", "-i", "--fork", "--mount-proc", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
        capture_output=True,
        text=True,
    )
    return None if trial.returncode == 0 else f"namespaces are not permitted: {trial.stderr.strip()}"


@contextmanager
def namespaced_hosts(addresses: Sequence[str], operator: str, folder: Path) -> Iterator[list[NamespacedHost]]:
    """Machines with these addresses (a /24) and root's key, and before them the operator's. All are gone at the end."""
    names = {"operator": operator, **{f"host{i}": address for i, address in enumerate(addresses)}}
    write_settings(folder, names)
    starters: list[subprocess.Popen[bytes]] = []
    try:
        hosts = []
        for name, address in names.items():
            starter, pid = start_host(name, folder)
            starters.append(starter)
            hosts.append(NamespacedHost(name, address, pid))
        connect(hosts)
        for host in hosts[1:]:
            subprocess.Popen(host.command("/usr/sbin/sshd", "-f", str(folder / "sshd_config")), cwd="/").wait(10)
        yield hosts
    finally:
        for starter in starters:
            starter.kill()  # takes the namespace's first process along, and that one everything inside
            starter.wait(10)
        wait_until_gone([host.pid for host in hosts])


def write_settings(folder: Path, names: dict[str, str]) -> None:
    """Keys, sshd's settings, a user database in which root's home is private, and host names without a name server."""
    (folder / "hosts").write_text("".join(f"{ip} {name}\n" for name, ip in {"localhost": "127.0.0.1", **names}.items()))
    (folder / "resolv.conf").write_text("")
    for key in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nPidFile none\nUsePAM no\nPermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\nStrictModes no\nMaxStartups 100\n"
    )
    others = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
    (folder / "passwd").write_text("\n".join([f"root:x:0:0:root:{HOME}:/bin/bash", *others]) + "\n")
    (folder / "shadow").write_text("root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n")


def start_host(name: str, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the first process of a machine; its starter and its pid. The starter dies with this process."""
    visible = [
        str(path) for path in (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)) if path.is_relative_to("/tmp")
    ]
    script = f"{SET_UP}\n{SHELL_AS_INIT}"
    starter = subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "KILL", "unshare", "-n", "-p", "-m", "-u", "-i"),
            *("--fork", "--mount-proc", "--kill-child", "bash", "-c", script, "bash", name, str(folder), *visible),
        ],
        stdin=subprocess.DEVNULL,
        cwd="/",
    )
    deadline_s = time.monotonic() + 60.0
    while not (folder / f"ready-{name}").exists():
        if starter.poll() is not None or time.monotonic() > deadline_s:
            starter.kill()
            raise RuntimeError(f"{name} was not set up")
        time.sleep(0.05)
    children = Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text().split()
    return starter, int(children[0])


def connect(hosts: Sequence[NamespacedHost]) -> None:
    """A bridge in the first machine's network and a link from it to each other one; `link_name` gives its near end."""
    hub = hosts[0]

    def network_of(host: NamespacedHost, *command: str) -> None:  # its links, with the pids of this process
        subprocess.run(["nsenter", "-t", str(host.pid), "-n", "--", *command], check=True)

    network_of(hub, "ip", "link", "add", "hub", "type", "bridge")
    network_of(hub, "ip", "address", "add", f"{hub.address}/24", "dev", "hub")
    network_of(hub, "ip", "link", "set", "hub", "up")
    for host in hosts[1:]:
        far = ["peer", "name", "eth0", "netns", str(host.pid)]
        network_of(hub, "ip", "link", "add", link_name(host), "type", "veth", *far)
        network_of(hub, "ip", "link", "set", link_name(host), "master", "hub", "up")
        network_of(host, "ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        network_of(host, "ip", "link", "set", "eth0", "up")
        network_of(host, "ip", "route", "add", "default", "via", hub.address)


def link_name(host: NamespacedHost) -> str:
    return f"to-{host.name}"


def set_link(operator: NamespacedHost, host: NamespacedHost, state: str) -> None:
    """Cut a machine off ("down") or bring it back ("up")."""
    operator.run("ip", "link", "set", link_name(host), state).check_returncode()


def wait_until_gone(pids: Sequence[int]) -> None:
    deadline_s = time.monotonic() + 60.0
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):  # noqa: PTH110
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"first processes of namespaces still there: {pids}")
        time.sleep(0.05)
