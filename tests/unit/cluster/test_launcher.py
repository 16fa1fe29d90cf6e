"""ray-cluster.yaml against Ray's own schema, and stopping a launcher's hosts in the right order over ssh."""

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raylane.cluster.errors import UsageError
from raylane.cluster.launcher import LauncherConfig, forget, hosts_alive, read_launcher_config, ssh_command, stop_hosts

REPOSITORY = Path(__file__).resolve().parents[3]
SHIPPED = REPOSITORY / "ray-cluster.yaml"
CONFIG = LauncherConfig(Path("c.yaml"), "demo", "192.0.2.10", ("192.0.2.11", "192.0.2.12"), "root", None)


def test_shipped_file_fits_rays_schema() -> None:
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load(SHIPPED.read_text()), schema)


def test_shipped_file_is_accepted_by_rays_local_provider() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load(SHIPPED.read_text()))
    validate_config(prepared)
    (node_type,) = prepared["available_node_types"].values()
    assert (node_type["min_workers"], node_type["max_workers"]) == (2, 2)


def test_shipped_file_is_read_and_never_uses_ray_stop(tmp_path: Path) -> None:
    key = tmp_path / "id"
    key.touch()
    path = tmp_path / "ray-cluster.yaml"
    path.write_text(SHIPPED.read_text().replace("~/.ssh/id_ed25519", str(key)))
    config = read_launcher_config(path)
    assert (config.head, config.workers) == ("192.0.2.10", ("192.0.2.11", "192.0.2.12"))
    data = yaml.safe_load(path.read_text())
    starts = data["head_start_ray_commands"] + data["worker_start_ray_commands"]
    assert all(command.startswith("raylane node ") for command in starts)


def edited(tmp_path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    data = yaml.safe_load(SHIPPED.read_text())
    del data["auth"]["ssh_private_key"]
    edit(data)
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        pytest.param(lambda c: c["provider"].update(type="aws"), "provider.type: .*'aws'", id="a cloud"),
        pytest.param(lambda c: c["provider"].update(worker_ips="192.0.2.11"), "provider.worker_ips", id="no list"),
        pytest.param(lambda c: c["provider"].pop("head_ip"), "provider.head_ip: .*None", id="no head"),
        pytest.param(
            lambda c: c["provider"].update(head_ip="-oProxyCommand=reboot"), "provider.head_ip", id="option as address"
        ),
        pytest.param(lambda c: c["provider"].update(worker_ips=["a; reboot"]), "worker_ips.0", id="shell in address"),
        pytest.param(lambda c: c["auth"].update(ssh_user="$(id)"), "auth.ssh_user", id="shell in user"),
        pytest.param(lambda c: c["auth"].update(ssh_private_key="/no/key"), "no such file: /no/key", id="no key"),
        pytest.param(lambda c: c["auth"].update(ssh_proxy_command="nc"), "ssh_proxy_command", id="proxy"),
        pytest.param(lambda c: c.update(docker={"image": "x"}), "docker", id="containers"),
        pytest.param(lambda c: c.update(cluster_name="../x"), "cluster_name", id="path as name"),
        pytest.param(lambda c: c.pop("auth"), "auth: a mapping is needed", id="no auth"),
    ],
)
def test_config_that_cannot_be_used(tmp_path: Path, edit: Callable[[dict[str, Any]], None], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        read_launcher_config(edited(tmp_path, edit))


def test_remote_command_is_one_constant_word() -> None:
    one, other = (ssh_command(CONFIG, address, "raylane node down") for address in ("192.0.2.11", "192.0.2.12"))
    assert one[-2:] == ("192.0.2.11", "raylane node down")
    assert one[:-2] == other[:-2]
    assert one[-3] == "--"  # nothing after it is taken for an option


class Hosts:
    """Stands for ssh: remembers who was called in which order, fails for the hosts named."""

    def __init__(self, failing: Sequence[str] = (), answer: bytes = b"stopped\n") -> None:
        self.called: list[str] = []
        self._failing = failing
        self._answer = answer

    def __call__(self, command: Sequence[str], text: bytes, timeout_s: float) -> "subprocess.CompletedProcess[bytes]":
        address = command[-2]
        self.called.append(address)
        if address in self._failing:
            said = b"bash: no job control in this shell\nssh: connect to host: No route to host\n"
            return subprocess.CompletedProcess(command, 255, b"", said)
        return subprocess.CompletedProcess(command, 0, self._answer, b"")


def test_workers_stop_before_the_head_and_are_looked_at_again() -> None:
    hosts = Hosts()
    stopped = stop_hosts(CONFIG, hosts)
    assert set(hosts.called[:2]) == set(hosts.called[3:]) == set(CONFIG.workers)
    assert hosts.called[2] == CONFIG.head
    assert [(s.address, s.ok, s.message) for s in stopped] == [
        (address, True, "stopped") for address in (CONFIG.head, *CONFIG.workers)
    ]


def test_an_unreachable_host_is_named_and_the_others_stop() -> None:
    stopped = {s.address: s for s in stop_hosts(CONFIG, Hosts(failing=("192.0.2.12",)))}
    assert not stopped["192.0.2.12"].ok
    assert stopped["192.0.2.12"].message == "ssh: connect to host: No route to host"
    assert stopped["192.0.2.11"].ok
    assert stopped[CONFIG.head].ok


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        pytest.param(Hosts(answer=b'[{"address": "a"}, {"address": "b"}]'), 2, id="two joined"),
        pytest.param(Hosts(answer=b"motd\n"), None, id="not understood"),
        pytest.param(Hosts(failing=("192.0.2.10",)), None, id="head unreachable"),
    ],
)
def test_hosts_alive(hosts: Hosts, expected: int | None) -> None:
    assert hosts_alive(CONFIG, hosts) == expected


def test_forget_removes_the_launchers_memory_of_this_cluster_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    config = read_launcher_config(edited(tmp_path, lambda c: c.update(cluster_name="mine")))
    (tmp_path / "ray").mkdir()
    for name in ("mine", "theirs"):
        (tmp_path / "ray" / f"cluster-{name}.state").touch()
    forget(config)
    assert [path.name for path in (tmp_path / "ray").iterdir()] == ["cluster-theirs.state"]


def test_forget_finds_the_file_where_ray_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.local.config import get_state_path

    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    config = read_launcher_config(edited(tmp_path, lambda c: c.update(cluster_name="mine")))
    path = Path(get_state_path("mine"))
    path.parent.mkdir()
    path.touch()
    forget(config)
    assert not path.exists()
