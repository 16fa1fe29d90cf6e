"""This host's Ray: what `ray start` is told, and that only what was started is ever stopped."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylane.cli.node import down_text
from raylane.cluster import node
from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.hosts import Host, LinkLevel
from raylane.cluster.node import (
    NodeState,
    check_ray_folder,
    down,
    expect_token,
    head_ip_of,
    hosts_inside,
    read_state,
    up,
    works,
)
from raylane.cluster.processes import name_of, processes_with
from raylane.cluster.ray_start import (
    MARK,
    NodeRequest,
    Redis,
    host_labels,
    label_value,
    parse_head_address,
    parse_redis,
    start_command,
    start_environment,
)
from raylane.deployments.deploy import command

pytestmark = pytest.mark.process

NO_GPUS = Host("host", (), ())
HEAD = NodeRequest(head_address=None)


def options(words: tuple[str, ...]) -> dict[str, str]:
    """--name value pairs; a flag has an empty value."""
    found: dict[str, str] = {}
    for word, after in zip(words, (*words[1:], "--"), strict=True):
        if word.startswith("--"):
            found[word] = "" if after.startswith("--") else after
    return found


# What `ray start` is told.


def test_a_hosts_labels_say_what_a_pair_gets_at_least(build: Any) -> None:
    switches = build(4, lambda a, b: LinkLevel.PIX if a // 2 == b // 2 else LinkLevel.SYS, name="rack 7/a")
    assert host_labels(switches) == {"raylane/host": "rack-7-a", "raylane/gpu": "NVIDIA-L40S", "raylane/link": "PIX"}
    uneven = build(4, lambda a, b: LinkLevel.PIX if (a, b) == (0, 1) else LinkLevel.SYS)
    assert host_labels(uneven)["raylane/link"] == "SYS"


@pytest.mark.parametrize(
    ("count", "gpu_names", "expected"),
    [
        pytest.param(0, {}, {"raylane/host": "host"}, id="no GPU: host only"),
        pytest.param(1, {}, {"raylane/host": "host", "raylane/gpu": "NVIDIA-L40S"}, id="one GPU has no link"),
        pytest.param(
            2,
            {1: "Tesla T4"},
            {"raylane/host": "host", "raylane/gpu": "mixed"},
            id="two models, which make no pair",
        ),
    ],
)
def test_what_a_host_lacks_has_no_label(
    build: Any, count: int, gpu_names: dict[int, str], expected: dict[str, str]
) -> None:
    assert host_labels(build(count, gpu_names=gpu_names)) == expected


@given(st.text(max_size=200))
def test_every_label_value_is_one_that_ray_takes(text: str) -> None:
    from ray._private.label_utils import validate_label_value

    value = label_value(text)
    validate_label_value(value)
    assert value


def test_labels_are_parsed_by_ray_as_meant(build: Any) -> None:
    from ray._private.label_utils import parse_node_labels_string

    host = build(2, name="a=b,c")
    assert parse_node_labels_string(options(start_command(HEAD, host))["--labels"]) == host_labels(host)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(NodeRequest(None, own_address="192.0.2.1", cpus=3, temp_dir=Path("/t")), id="head"),
        pytest.param(
            NodeRequest(
                None, redis=Redis("r:6379", "u", "p", "c"), autoscaling_config=Path("/c"), dashboard_host="192.0.2.1"
            ),
            id="head with Redis and autoscaler",
        ),
        pytest.param(NodeRequest("192.0.2.1:6379", own_address="192.0.2.2"), id="worker"),
    ],
)
def test_every_option_is_one_of_this_ray(request_: NodeRequest) -> None:
    from ray.scripts.scripts import start

    known = {name for parameter in start.params for name in parameter.opts}
    assert options(start_command(request_, NO_GPUS)).keys() <= known


def test_gpus_are_counted_without_those_cut_up_by_mig(build: Any) -> None:
    assert options(start_command(HEAD, build(4, mig=frozenset({2}))))["--num-gpus"] == "3"


def test_dashboard_listens_on_loopback_unless_told() -> None:
    assert options(start_command(HEAD, NO_GPUS))["--dashboard-host"] == "127.0.0.1"


def test_a_worker_gets_no_option_of_the_head() -> None:
    told = options(start_command(NodeRequest("192.0.2.1:6379"), NO_GPUS))
    assert told["--address"] == "192.0.2.1:6379"
    assert not {"--head", "--port", "--dashboard-host", "--include-dashboard"} & told.keys()


def test_environment_is_the_callers_with_token_and_head_loss_settings() -> None:
    base = {"HF_HOME": "/models", "RAY_ADDRESS": "192.0.2.9:6379", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    env = start_environment(base, NodeRequest(None, redis=Redis("r:6379", None, None, "blue")), "m")
    assert env["HF_HOME"] == "/models"
    assert env["RAY_AUTH_MODE"] == "token"
    assert env[MARK] == "m"
    assert (env["RAY_REDIS_ADDRESS"], env["RAY_external_storage_namespace"]) == ("r:6379", "blue")
    assert not {"RAY_ADDRESS", "OMP_NUM_THREADS"} & env.keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("192.0.2.1:7000", "192.0.2.1:7000", id="with port"),
        pytest.param("head.example", "head.example:6379", id="Ray's port by default"),
        pytest.param("[2001:db8::1]:7000", "[2001:db8::1]:7000", id="IPv6"),
    ],
)
def test_head_address(text: str, expected: str) -> None:
    assert parse_head_address(text) == expected


@pytest.mark.parametrize("text", ["", ":6379", "a b:1", "192.0.2.1:x", "192.0.2.1:70000", "ray://192.0.2.1:10001"])
def test_head_address_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="--address"):
        parse_head_address(text)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("192.0.2.5:6380", Redis("192.0.2.5:6380", None, "pw", "c"), id="plain"),
        pytest.param("redis://ops@redis.example:6379", Redis("redis.example:6379", "ops", "pw", "c"), id="with user"),
        pytest.param("rediss://redis.example:6379", Redis("rediss://redis.example:6379", None, "pw", "c"), id="TLS"),
    ],
)
def test_redis(url: str, expected: Redis) -> None:
    assert parse_redis(url, "pw", "c") == expected


@pytest.mark.parametrize(
    ("url", "cluster", "named"),
    [
        pytest.param("redis://:secret@r:6379", "c", "RAY_REDIS_PASSWORD", id="password in the URL"),
        pytest.param("http://r:6379", "c", "http://r:6379", id="other scheme"),
        pytest.param("redis://r", "c", "HOST:PORT", id="no port"),
        pytest.param("redis://r:6379", "a@b", "--redis-cluster", id="cluster name"),
    ],
)
def test_redis_that_is_none(url: str, cluster: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse_redis(url, None, cluster)


# Starting and stopping, with scripts named like Ray's processes in Ray's place.


class FakeRay:
    """Stands for `ray start`: leaves processes behind as Ray does, or fails when half of them run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.starts = 0
        self.fails = 0  # how many of the next starts
        for name in ("raylet", "gcs_server", "agent"):
            (folder / name).write_text(f"#!{sys.executable} -S\nimport time\ntime.sleep(600)\n")
            (folder / name).chmod(0o755)

    def __call__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.starts += 1
        names = ["raylet", "agent"] if "--address" in command else ["gcs_server", "raylet", "agent"]
        for name in names:
            self.spawn(name, environment)
        if self.fails:
            self.fails -= 1
            raise FailedError("Ray did not start")

    def spawn(self, name: str, environment: dict[str, str]) -> int:
        words = [str(self._folder / name), "--gcs-address=192.0.2.1:6379", "--node_ip_address=192.0.2.2"]
        return subprocess.Popen(words, env=environment, start_new_session=True).pid


def alive(mark: str) -> list[int]:
    return [pid for pid in processes_with(MARK, mark) if state_of(pid) != "Z"]


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "token").write_text("t")
    (tmp_path / "logs").mkdir()
    yield tmp_path
    down(tmp_path)


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay(tmp_path)
    monkeypatch.setattr(node, "run_to_end", fake)
    monkeypatch.setattr(node, "wait_for_head", lambda address: None)
    return fake


def test_up_is_done_once_and_down_ends_all_of_it(folder: Path, ray: FakeRay) -> None:
    state, started = up(HEAD, NO_GPUS, folder)
    assert started
    assert (state.head, state.head_address, state.own_address) == (True, "192.0.2.1:6379", "192.0.2.2")
    assert up(HEAD, NO_GPUS, folder) == (state, False)
    assert ray.starts == 1
    assert down(folder) == state
    assert alive(state.mark) == []
    assert down(folder) is None


def test_down_leaves_another_ray_of_the_host_alone(folder: Path, ray: FakeRay) -> None:
    other = ray.spawn("raylet", {**os.environ, MARK: "somebody else's"})
    unmarked = ray.spawn("raylet", dict(os.environ))
    try:
        up(HEAD, NO_GPUS, folder)
        down(folder)
        assert [state_of(pid) == "Z" for pid in (other, unmarked)] == [False, False]
    finally:
        for pid in (other, unmarked):
            os.killpg(pid, signal.SIGKILL)


@pytest.mark.parametrize("lost", ["raylet", "gcs_server"])
def test_a_head_that_lost_a_vital_process_is_started_anew(folder: Path, ray: FakeRay, lost: str) -> None:
    before, _ = up(HEAD, NO_GPUS, folder)
    for pid in alive(before.mark):
        if name_of(pid) == lost:
            os.kill(pid, signal.SIGKILL)
    deadline_s = time.monotonic() + 5.0
    while works(before) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    after, started = up(HEAD, NO_GPUS, folder)
    assert started
    assert after.mark != before.mark
    assert alive(before.mark) == []


def test_a_failed_start_leaves_nothing_behind(folder: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.fails = 2
    monkeypatch.setattr(secrets, "token_hex", lambda count: "the-mark")
    with pytest.raises(FailedError, match="did not start"):
        up(HEAD, NO_GPUS, folder)
    assert alive("the-mark") == []
    assert read_state(folder) is None


def test_a_start_that_fails_once_is_tried_again(folder: Path, ray: FakeRay) -> None:
    ray.fails = 1
    state, _ = up(HEAD, NO_GPUS, folder)
    assert ray.starts == 2
    assert works(state)


# `node up` whose `ray start` leaves a raylet and then goes on starting for ever.
STARTING = """
import subprocess, sys, time
from pathlib import Path
from raylane.cluster import node
from raylane.cluster.hosts import Host
from raylane.cluster.processes import name_of, processes_with
from raylane.cluster.ray_start import MARK, NodeRequest
folder = Path(sys.argv[1])
def run(command, environment, log):
    subprocess.Popen([str(folder / "raylet"), *sys.argv[2:]], env=environment, start_new_session=True)
    deadline_s = time.monotonic() + 10.0
    while not processes_with(MARK, environment[MARK]) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    print("starting", flush=True)
    time.sleep(60)
node.run_to_end = run
node.up(NodeRequest(head_address=None), Host("host", (), ()), folder)
"""


@pytest.fixture
def cut_short(folder: Path, ray: FakeRay) -> NodeState:
    """What is recorded of a start whose command was killed; its raylet runs."""
    command = [sys.executable, "-c", STARTING, str(folder), "--gcs-address=192.0.2.1:6379"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starting:
        try:
            assert starting.stdout is not None
            assert starting.stdout.readline() == "starting\n"
        finally:
            starting.kill()
    state = read_state(folder)
    assert state is not None
    assert len(alive(state.mark)) == 1
    return state


def test_down_ends_a_start_that_was_cut_short(folder: Path, cut_short: NodeState) -> None:
    assert not works(cut_short)
    assert down(folder) == cut_short
    assert alive(cut_short.mark) == []
    assert down(folder) is None


def test_up_ends_a_start_that_was_cut_short_and_starts_anew(folder: Path, ray: FakeRay, cut_short: NodeState) -> None:
    state, started = up(HEAD, NO_GPUS, folder)
    assert started
    assert alive(cut_short.mark) == []
    assert works(state)


@pytest.mark.parametrize(
    ("head_address", "expected"),
    [
        pytest.param("192.0.2.1:6379", "192.0.2.2: stopped, head of 192.0.2.1:6379", id="that ran"),
        pytest.param("", "stopped a head whose start was cut short", id="that was starting"),
    ],
)
def test_what_down_says_of_a_head(head_address: str, expected: str) -> None:
    assert down_text(NodeState("m", True, head_address, "192.0.2.2")) == expected


def test_a_folder_that_cannot_hold_the_nodes_lock_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent cannot be used: No such file or directory"):
        down(tmp_path / "absent")


def test_following_ends_with_an_error_and_nothing_left_when_the_raylet_dies(folder: Path, ray: FakeRay) -> None:
    state, _ = up(HEAD, NO_GPUS, folder)
    for pid in alive(state.mark):
        if name_of(pid) == "raylet":
            os.kill(pid, signal.SIGKILL)
    with pytest.raises(FailedError, match="ended by itself"):
        node.follow(state, folder)
    assert alive(state.mark) == []


def test_following_stops_this_hosts_ray_when_it_is_interrupted(
    folder: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, _ = up(HEAD, NO_GPUS, folder)

    def interrupt(seconds: float) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        node.follow(state, folder)
    assert alive(state.mark) == []


def test_a_host_of_another_cluster_is_not_taken_over(folder: Path, ray: FakeRay) -> None:
    up(NodeRequest("192.0.2.1:6379"), NO_GPUS, folder)
    with pytest.raises(FailedError, match=r"worker of 192\.0\.2\.1:6379, asked for: a worker of 192\.0\.2\.7:6379"):
        up(NodeRequest("192.0.2.7:6379"), NO_GPUS, folder)
    with pytest.raises(FailedError, match="asked for: the head"):
        up(HEAD, NO_GPUS, folder)


def test_down_removes_what_the_launcher_remembers_on_its_head(
    folder: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    config = folder / "bootstrap.yaml"
    config.write_text("cluster_name: mine\nprovider: {type: local, head_ip: 192.0.2.10}\n")
    remembered = folder / "ray" / "cluster-mine.state"
    remembered.parent.mkdir()
    remembered.touch()
    up(NodeRequest(None, autoscaling_config=config), NO_GPUS, folder)
    down(folder)
    assert not remembered.exists()


def test_the_head_makes_a_token_that_only_its_user_reads(folder: Path, ray: FakeRay) -> None:
    (folder / "token").unlink()
    up(HEAD, NO_GPUS, folder)
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
    assert len((folder / "token").read_text()) == 64


def test_a_worker_without_token_is_not_started(folder: Path, ray: FakeRay) -> None:
    (folder / "token").unlink()
    with pytest.raises(UsageError, match="no cluster token"):
        up(NodeRequest("192.0.2.1:6379"), NO_GPUS, folder)
    assert ray.starts == 0


def test_a_host_whose_gpus_are_hidden_is_not_started(
    folder: Path, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UsageError, match="'0,1'"):
        up(HEAD, NO_GPUS, folder)
    assert ray.starts == 0


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        pytest.param("TMPDIR", "/tmp/" + "x" * 60, "TMPDIR: Ray's sockets need a path of at most", id="too long"),
        pytest.param("TMPDIR", "/tmp/b-ü", "TMPDIR: Ray's sockets need a path of", id="not ASCII"),
        pytest.param("RAY_TMPDIR", "/proc/no", "RAY_TMPDIR: Ray's folder /proc/no/ray cannot be made", id="not there"),
    ],
)
def test_a_folder_that_ray_cannot_use_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=says):
        check_ray_folder(HEAD)
    check_ray_folder(NodeRequest("192.0.2.1:6379"))  # a worker takes the head's


def test_a_head_that_does_not_answer_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "HEAD_ANSWERS_S", 0.0)
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(FailedError, match=f"no Ray head answers at {address}"):
            up(NodeRequest(address), NO_GPUS, folder)


def test_a_command_that_fails_shows_the_end_of_its_output(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match=r"exit status 3[\s\S]*the reason"):
        node.run_to_end(["sh", "-c", "echo the reason; exit 3"], dict(os.environ), tmp_path / "log")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"mark": "m"}'])
def test_a_state_file_that_is_none_counts_as_absent(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.json").write_text(text)
    assert read_state(tmp_path) is None


def test_state_survives_the_file(tmp_path: Path) -> None:
    state = NodeState("m", True, "192.0.2.1:6379", "192.0.2.1", ("/a", "/b"))
    node.write_state(state, tmp_path)
    assert read_state(tmp_path) == state


def test_a_folder_that_cannot_keep_the_state_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path / 'gone'} cannot be used: No such file"):
        node.write_state(NodeState("m", True, "192.0.2.1:6379", "192.0.2.1"), tmp_path / "gone")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("provider: {head_ip: 192.0.2.10}", "192.0.2.10", id="address"),
        pytest.param("provider: {head_ip: localhost}", "127.0.0.1", id="name"),
    ],
)
def test_the_launchers_head_address(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert head_ip_of(tmp_path / "c.yaml") == expected


@pytest.mark.parametrize("text", ["provider: {}", "[]", "provider: {head_ip: 7}"])
def test_a_launcher_file_without_head(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"c\.yaml"):
        head_ip_of(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("mode", "present", "expected"),
    [
        pytest.param(None, True, "token", id="used where there is one"),
        pytest.param(None, False, None, id="not expected where there is none"),
        pytest.param("disabled", True, "disabled", id="the user's word counts"),
    ],
)
def test_token_of_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str | None, present: bool, expected: str | None
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("RAY_AUTH_MODE", mode or "unset")
    if mode is None:
        monkeypatch.delenv("RAY_AUTH_MODE")
    if present:
        (tmp_path / "token").write_text("t")
    expect_token()
    assert os.environ.get("RAY_AUTH_MODE") == expected


def test_the_deploy_script_hands_on_its_arguments() -> None:
    assert command(["a.yaml", "--json"])[1:] == ["-m", "raylane.cli.main", "deploy", "a.yaml", "--json"]


def test_a_mode_that_ray_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "tokens")
    with pytest.raises(UsageError, match="RAY_AUTH_MODE: expected token or disabled"):
        expect_token()


def test_without_a_home_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)

    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(UsageError, match="HOME is not set"):
        expect_token()


def test_no_proxy_names_this_host_the_head_and_the_launchers_workers(tmp_path: Path) -> None:
    file = tmp_path / "bootstrap.yaml"
    file.write_text("provider: {head_ip: 192.0.2.1, worker_ips: [192.0.2.2, gpu-c]}")
    head = NodeRequest(None, own_address="192.0.2.1", autoscaling_config=file)
    worker = NodeRequest("[fd00::1]:6379", own_address="fd00::2")
    assert hosts_inside(head) == ("192.0.2.1", "192.0.2.2", "gpu-c")
    assert hosts_inside(worker) == ("fd00::2", "fd00::1")
    base = {"https_proxy": "http://proxy.example:3128", "no_proxy": "intra.example"}
    environment = start_environment(base, head, "mark", hosts_inside(head))
    assert {"intra.example", "127.0.0.1", *hosts_inside(head)} <= set(environment["no_proxy"].split(","))
    assert environment["https_proxy"] == base["https_proxy"]
