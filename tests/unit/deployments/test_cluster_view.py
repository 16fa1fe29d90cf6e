"""Hosts, domains, GPUs and who has them, from what nodes see and replicas say; and what the terminal shows of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from raylane.cli.status import domain_text, gpu_table, host_line, problems, replica_table, status_data, use_text
from raylane.cluster.held_gpus import HeldGpu
from raylane.cluster.hosts import Host
from raylane.cluster.leases import Holder
from raylane.cluster.recording import load_recording
from raylane.deployments.directory.cluster_view import GpuUse, HostView, NodeSight, Seen, cluster_view
from raylane.deployments.directory.reports import ReplicaReport, ReplicaState, Snapshot

RECORDING = Path(__file__).resolve().parents[2] / "fixtures" / "topology" / "l40s-x8-plx.json"
NODE = ("10.0.0.1", 8.0)
ENGINE, STRANGER = 100, 666


@pytest.fixture
def host() -> Host:
    (found,) = load_recording(RECORDING)
    return found


def report(replica_id: str, uuids: tuple[str, ...], model: str = "llama-8b", **values: object) -> ReplicaReport:
    made = ReplicaReport(replica_id, model, ReplicaState.READY, "http://h:1", "secret", "10.0.0.1", gpu_uuids=uuids)
    return replace(made, **values)  # type: ignore[arg-type] # fields by name


def used(host: Host, **pids: tuple[int, ...] | None) -> Host:
    """The host with these processes on its GPUs, by index (_0=...)."""
    gpus = tuple(replace(gpu, processes=pids.get(f"_{gpu.index}", ())) for gpu in host.gpus)
    return replace(host, gpus=gpus)


def view(
    host: Host, replicas: list[ReplicaReport], gpus: tuple[Holder, ...] = (), ports: tuple[Holder, ...] = ()
) -> HostView:
    (found,) = cluster_view([NodeSight(*NODE, Seen(host, gpus, ports, frozenset({ENGINE})))], replicas)
    return found


def text(shown: object) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(shown)
    return console.export_text()


def test_every_gpu_is_in_its_domain_and_has_its_replica(host: Host) -> None:
    u = [gpu.uuid for gpu in host.gpus]
    pair = report("pair", (u[0], u[2]), "llama-70b", second_best=True)
    found = view(host, [pair, report("one", (u[5],))])
    assert [[gpu.index for gpu in domain.gpus] for domain in found.domains] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert {domain.level for domain in found.domains} == {"PIX"}
    has = {gpu.index: (gpu.model, gpu.replica_id, gpu.second_best) for gpu in found.gpus() if gpu.use is GpuUse.LEASED}
    assert has == {
        0: ("llama-70b", "pair", True),
        2: ("llama-70b", "pair", True),
        5: ("llama-8b", "one", False),
    }
    assert [gpu.use for gpu in found.gpus()].count(GpuUse.FREE) == 5


def test_a_lease_counts_before_its_replica_has_reported(host: Host) -> None:
    found = view(host, [], (Holder(host.gpus[3].uuid, "llama-8b new", 7),))
    (leased,) = [gpu for gpu in found.gpus() if gpu.use is GpuUse.LEASED]
    assert (leased.index, leased.model, leased.replica_id) == (3, "llama-8b", "new")


@pytest.mark.parametrize(
    ("pids", "leased", "use", "foreign"),
    [
        pytest.param((), False, GpuUse.FREE, (), id="nothing is on it"),
        pytest.param((STRANGER,), False, GpuUse.FOREIGN, (STRANGER,), id="a stranger alone"),
        pytest.param((ENGINE,), True, GpuUse.LEASED, (), id="the engine alone"),
        pytest.param((ENGINE, STRANGER), True, GpuUse.LEASED, (STRANGER,), id="a stranger beside the engine"),
        pytest.param((STRANGER,), True, GpuUse.LEASED, None, id="pids that may be another namespace's"),
        pytest.param(None, False, GpuUse.FREE, None, id="the driver does not tell"),
    ],
)
def test_who_is_on_a_gpu(
    host: Host, pids: tuple[int, ...] | None, leased: bool, use: GpuUse, foreign: tuple[int, ...] | None
) -> None:
    replicas = [report("one", (host.gpus[0].uuid,))] if leased else []
    gpu = view(used(host, _0=pids), replicas).gpus()[0]
    assert (gpu.use, gpu.foreign_pids) == (use, foreign)


def test_gpus_in_mig_mode_are_shown_on_their_own(host: Host) -> None:
    split = replace(host, gpus=(replace(host.gpus[0], mig=True), *host.gpus[1:]))
    found = view(split, [])
    assert sorted(gpu.index for gpu in found.gpus()) == list(range(8))
    assert [domain.level for domain in found.domains if domain.gpus[0].index == 0] == [None]


def test_a_replica_without_gpu_is_on_the_host_where_it_holds_ports(host: Host) -> None:
    ports = (Holder("20000", "tiny cpu-1", 7),)
    found = view(host, [report("cpu-1", ()), report("cpu-2", ())], ports=ports)
    assert found.replicas_without_gpu == ("cpu-1",)


def test_a_node_that_does_not_answer_is_shown_with_the_reason() -> None:
    (found,) = cluster_view([NodeSight(*NODE, None, "no answer within 30 s")], [])
    assert (found.name, found.domains, found.problems) == ("10.0.0.1", (), ("no answer within 30 s",))
    assert [line.plain for line in problems([], [found])] == ["! 10.0.0.1: no answer within 30 s"]


def test_a_node_that_offers_no_gpu_has_no_problem_with_its_driver() -> None:
    bare = Host("bare", (), (), problems=("no NVIDIA driver on this machine",))
    plain = NodeSight("10.0.0.1", 0.0, Seen(bare, (), (), frozenset()))
    promised = NodeSight(*NODE, Seen(bare, (), (), frozenset()))
    assert [found.problems for found in cluster_view([plain, promised], [])] == [(), bare.problems]
    assert host_line(cluster_view([plain], [])[0]) == "bare at 10.0.0.1: no GPU"


def test_the_terminal_shows_wrong_gpus_second_best_links_and_strangers(host: Host) -> None:
    u = [gpu.uuid for gpu in host.gpus]
    wrong = report("bad", (u[0],), gpu_problem="the engine is on GPU-x", held_gpus=(HeldGpu("GPU-x", None),))
    pair = report("pair", (u[1], u[2]), "llama-70b", second_best=True, engine_kind="vllm")
    found = view(used(host, _2=(ENGINE, STRANGER), _7=(STRANGER,)), [wrong, pair])
    shown = {gpu.index: use_text(gpu) for gpu in found.gpus()}
    assert shown[0] == "llama-8b bad WRONG"
    assert shown[2] == "llama-70b pair (second best); also process 666"
    assert (shown[3], shown[7]) == ("free", "process 666")
    assert [line.plain for line in problems([wrong, pair], [found])] == ["error: llama-8b bad: the engine is on GPU-x"]
    rows = text(replica_table([wrong, pair], [found]))
    assert "0 WRONG" in rows
    assert "1, 2 (second best) (use unknown)" in rows
    assert host_line(found) == "l40s-plx at 10.0.0.1: 8 x NVIDIA L40S; 1 foreign, 4 free, 3 leased"
    assert domain_text(found.domains[0]) == "PIX, 1.3 ms (by label)"
    assert "llama-70b pair" in text(gpu_table(found))


def test_the_json_has_everything_but_the_engines_keys(host: Host) -> None:
    replica = report("one", (host.gpus[0].uuid,), engine_cpus="0-3", held_gpus=(HeldGpu("GPU-x", "0000:21:00.0"),))
    known = Snapshot("epoch", ("llama-8b",), (replica,), {"one": 0.1}, {})
    data = json.loads(json.dumps(status_data([], known, [view(host, [replica])])))
    (told,) = data["directory"]["replicas"]
    assert "api_key" not in told
    assert (told["engine_cpus"], told["held_gpus"]) == ("0-3", [{"uuid": "GPU-x", "pci_bus_id": "0000:21:00.0"}])
    assert data["hosts"][0]["domains"][0]["gpus"][0]["replica_id"] == "one"
    assert "secret" not in json.dumps(data)
