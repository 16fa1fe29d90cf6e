"""ray-cluster.yaml for real: three machines (namespaces with sshd), Ray's own launcher, raylane on top, and failures.

RAYLANE_HEADLESS_S sets how long requests must go on without the head (30 s, 120 s by `make launcher`; the design
promises 600 s).
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from namespaced_hosts import HOME, REPOSITORY, NamespacedHost, missing, namespaced_hosts, set_link

pytestmark = [pytest.mark.serve, pytest.mark.timeout(600)]

OPERATOR = "10.77.0.1"
ADDRESSES = ["10.77.0.20", "10.77.0.21", "10.77.0.22"]
HEADLESS_S = float(os.environ.get("RAYLANE_HEADLESS_S", "30"))
BIN = Path(sys.executable).parent
MODEL = "simulated"
DEPLOYMENT = f"""
models:
  {MODEL}:
    source: builtin:llama-3-8b-shape
    engine: {{kind: simulator, device: cpu, max_model_len: 2048}}
    cpus: 2  # of the 3 that each host offers: one replica a host
    replicas: {{min: 3, max: 3}}
gateway: {{host: 0.0.0.0, port: 8000, processes_per_host: 1}}
"""


def cluster_yaml(head_options: str = "") -> str:
    """The shipped file with this network's addresses, this environment's folder, and three CPUs a host."""
    text = (REPOSITORY / "ray-cluster.yaml").read_text()
    for old, new in [
        ("head_ip: 192.0.2.10", f"head_ip: {ADDRESSES[0]}"),
        ("[192.0.2.11, 192.0.2.12]", f"[{ADDRESSES[1]}, {ADDRESSES[2]}]"),
        ("ssh_private_key: ~/.ssh/id_ed25519", "ssh_private_key: ~/.ssh/id"),
        ("/opt/raylane/bin", str(BIN)),
        ("raylane/bin ~", f"{BIN} ~"),
        ("raylane node up", "raylane node up --cpus 3"),
        ("--head ", f"--head {head_options} "),
    ]:
        assert old in text, f"ray-cluster.yaml no longer holds {old!r}"
        text = text.replace(old, new)
    return text


@dataclass
class Machines:
    """The operator's machine, the three hosts, and how long each step took."""

    operator: NamespacedHost
    hosts: list[NamespacedHost]
    began_s: float

    def say(self, what: str) -> None:
        print(f"[{time.monotonic() - self.began_s:5.1f} s] {what}", flush=True)  # noqa: T201 - shown when the test fails

    def shell(self, command: str, timeout_s: float) -> str:
        """A command in the operator's login shell; its output. Fails the test with both outputs."""
        done = self.operator.run("bash", "-c", f"cd ~ && {command}", timeout_s=timeout_s)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        self.say(command)
        return done.stdout

    def ask(self, host: NamespacedHost, timeout_s: float = 60.0) -> str:
        """One chat completion through a host's gateway, from the operator's machine: "200", or what came instead."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}
        url = f"http://{host.address}:8000/v1/chat/completions"
        command = ["curl", "-s", "--max-time", str(timeout_s), "-w", "\n%{http_code}", "-d", json.dumps(body)]
        done = self.operator.run(*command, "-H", "content-type: application/json", url, timeout_s=timeout_s + 10)
        text, _, status = done.stdout.rpartition("\n")
        return "200" if status == "200" and '"choices"' in text else f"{time.strftime('%T')} {url}: {status} {text}"

    def on_head(self, command: str, timeout_s: float = 60.0) -> str:
        """A command in a login shell of the head."""
        shell = ["bash", "--login", "-i", "-c", f"source ~/.bashrc; {command}"]
        done = self.hosts[0].run(*shell, timeout_s=timeout_s)
        assert done.returncode == 0, f"on the head: {command}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def replicas(self) -> list[dict[str, Any]]:
        status = json.loads(self.on_head("raylane status --json"))
        found: list[dict[str, Any]] = (status["directory"] or {"replicas": []})["replicas"]
        return found


def until(done: Callable[[], object], timeout_s: float, what: str) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(1.0)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    if os.geteuid() != 0:
        pytest.skip("needs root for namespaces")
    if (why := missing()) is not None:
        pytest.skip(why)
    with namespaced_hosts(ADDRESSES, OPERATOR, tmp_path) as (operator, *hosts):
        for name, text in [("ray-cluster.yaml", cluster_yaml()), ("models.yaml", DEPLOYMENT)]:
            operator.run("tee", f"{HOME}/{name}", stdin=text).check_returncode()
        operator.run("cp", str(tmp_path / "key"), f"{HOME}/.ssh/id").check_returncode()
        yield Machines(operator, hosts, time.monotonic())


def test_cluster_comes_up_serves_survives_and_goes(machines: Machines) -> None:
    head, second, third = machines.hosts
    machines.shell("ray get-auth-token --generate", 30)
    machines.shell("raylane cluster up ray-cluster.yaml --timeout 120", 150)

    # A config edited on the operator's machine reaches the cluster, by Ray's own commands.
    machines.shell("ray rsync-up ray-cluster.yaml models.yaml '~/models.yaml'", 60)
    machines.shell(f"ray submit ray-cluster.yaml {REPOSITORY}/deployments/deploy.py models.yaml", 240)
    deployed = engines(machines)
    machines.on_head(
        f"mkdir ~/job && cp {REPOSITORY}/deployments/deploy.py ~/models.yaml ~/job && cd ~/job && RAY_AUTH_MODE=token "
        f"ray job submit --address http://127.0.0.1:8265 --working-dir . -- {BIN}/python deploy.py models.yaml",
        timeout_s=180,
    )
    assert engines(machines) == deployed
    machines.say("deployed again as a job: the same replicas")
    before = {r["replica_id"]: r["load"]["output_tokens_total"] or 0 for r in machines.replicas()}
    for host in machines.hosts:
        for _ in range(6):
            assert machines.ask(host) == "200"
    until(lambda: answered_by_all(machines, before), 10, "a request answered by a replica on every host")
    machines.say("18 requests through three gateways, answered by replicas on three hosts")

    # A host is cut off: the others go on; it comes back and serves again.
    set_link(machines.operator, third, "down")
    for _ in range(10):
        assert machines.ask(head) == "200"
        assert machines.ask(second) == "200"
    until(lambda: hosts_alive(machines) == 2, 120, "the head notices the lost host")
    machines.say("host cut off, 20 requests answered by the others, the head has noticed")
    set_link(machines.operator, third, "up")
    until(lambda: hosts_alive(machines) == 3, 120, "the host joins again")
    machines.say("host joined again")
    until(lambda: machines.ask(third, 5) == "200", 120, "its gateway answers again")
    machines.say("its gateway answers again")

    # The head is lost: the other hosts go on serving.
    set_link(machines.operator, head, "down")
    kill_raylane(head)
    assert failed_requests(machines, [second, third], HEADLESS_S) == []
    machines.say(f"head killed, no failed request in {HEADLESS_S:.0f} s")

    set_link(machines.operator, head, "up")
    machines.shell("raylane cluster down ray-cluster.yaml", 120)
    for host in machines.hosts:
        assert host.processes() == [], f"left running on {host.address}"
    machines.say("nothing left running")


def test_with_redis_the_head_returns_and_replicas_are_kept(machines: Machines) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("not installed: redis-server")
    options = f"--redis redis://{OPERATOR}:6380"
    machines.operator.run("tee", f"{HOME}/ray-cluster.yaml", stdin=cluster_yaml(options)).check_returncode()
    redis = ["redis-server", "--port", "6380", "--bind", OPERATOR, "--protected-mode", "no", "--save", ""]
    machines.operator.run(*redis, "--daemonize", "yes").check_returncode()
    machines.shell("ray get-auth-token --generate", 30)
    machines.shell("raylane cluster up ray-cluster.yaml --timeout 120", 150)
    machines.shell("raylane cluster submit ray-cluster.yaml models.yaml", 240)
    head = machines.hosts[0]
    before = engines(machines)

    kill_raylane(head)
    machines.on_head(f"raylane node up --cpus 3 --head {options} --autoscaling-config ~/ray_bootstrap_config.yaml", 300)
    machines.say("head started again")
    until(lambda: engines(machines).keys() == set(ADDRESSES), 120, "three replicas ready again")
    after = engines(machines)
    assert [after[host.address] == before[host.address] for host in machines.hosts] == [False, True, True]
    assert failed_requests(machines, machines.hosts, 5.0) == []
    machines.say("workers' replicas are the same processes, the head's was replaced")
    machines.shell("raylane cluster down ray-cluster.yaml", 120)
    for host in machines.hosts:
        assert host.processes() == [], f"left running on {host.address}"


def engines(machines: Machines) -> dict[str, tuple[str, int]]:
    """Replica and engine process of each host that has one ready."""
    ready = [r for r in machines.replicas() if r["state"] == "ready"]
    return {r["node_ip"]: (r["replica_id"], r["engine_pid"]) for r in ready}


def answered_by_all(machines: Machines, before: dict[str, float]) -> bool:
    now = {r["replica_id"]: (r["node_ip"], r["load"]["output_tokens_total"] or 0) for r in machines.replicas()}
    return {ip for name, (ip, tokens) in now.items() if tokens > before[name]} == set(ADDRESSES)


def hosts_alive(machines: Machines) -> int:
    return len(json.loads(machines.on_head("raylane node hosts --json")))


def kill_raylane(host: NamespacedHost) -> None:
    """Kill everything that `raylane node up` started there, as a crash would."""
    mark = json.loads(host.run("bash", "-c", "cat /tmp/raylane-0/node.json").stdout)["mark"]
    script = (
        "import os, sys; from raylane.cluster.processes import end_processes_with;"
        f"end_processes_with('RAYLANE_NODE', {mark!r}, 0.0)"
    )
    host.run(sys.executable, "-c", script).check_returncode()


def failed_requests(machines: Machines, hosts: list[NamespacedHost], seconds: float) -> list[str]:
    """What went wrong with requests sent to these hosts in turn, for that long."""
    answers, deadline_s = [], time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        answers += [machines.ask(host) for host in hosts]
        time.sleep(0.2)
    machines.say(f"{len(answers)} requests without the head")
    return [answer for answer in answers if answer != "200"]
