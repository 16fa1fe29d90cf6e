"""What `raylane topology` and the placement part of `raylane plan` print."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from raylane.cli.plan_placement import placement_data, placement_view
from raylane.cli.topology import host_view, known_hosts, probed_host, topology
from raylane.cluster import nvml, probe
from raylane.cluster.choose import Choice
from raylane.cluster.errors import UsageError
from raylane.cluster.hosts import GroupMeasurement, Host, LinkMeasurement, Verdict
from raylane.cluster.leases import holders, runtime_folder, take_lease
from raylane.cluster.planner import Want, plan
from raylane.cluster.probe import Prober
from raylane.cluster.recording import load_recording, read_recording

Build = Callable[..., Host]
FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "topology"
NAMES = [path.stem for path in sorted(FIXTURES.glob("*.json"))]

app = typer.Typer()
app.command()(topology)


def shown(*parts: object) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get()


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("name", NAMES)
def test_every_recording_is_shown_with_every_gpu(name: str) -> None:
    output = run("--from", str(FIXTURES / f"{name}.json"))
    for host in load_recording(FIXTURES / f"{name}.json"):
        assert host.name in output
        assert all(gpu.uuid in output for gpu in host.gpus)


def test_a_copy_of_a_recording_keeps_its_note(tmp_path: Path) -> None:
    source, copy = FIXTURES / "one-gpu.json", tmp_path / "copy.json"
    run("--from", str(source), "--record", str(copy))
    assert read_recording(copy).note == read_recording(source).note


def test_what_looks_like_markup_is_shown_as_it_is(build: Build) -> None:
    host = build(2, broken=frozenset({(0, 1)}), name="a[/b]")
    broken = replace(host.links[0], measured=LinkMeasurement(Verdict.BROKEN, "[/hangs]"))
    group = GroupMeasurement(("a[/b]-0", "a[/b]-1"), Verdict.BROKEN, "[/all]")
    gpus = (replace(host.gpus[0], pci_bus_id="[/bus]"), host.gpus[1])
    text = shown(host_view(replace(host, gpus=gpus, links=(broken,), groups=(group,), problems=("[/lost]",))))
    assert all(word in text for word in ("a[/b]-0", "[/hangs]", "[/all]", "[/bus]", "[/lost]"))


def test_domains_are_drawn_from_the_labels() -> None:
    output = run("--from", str(FIXTURES / "l40s-x12-three-hosts.json"))
    assert output.count("GPU 0 + GPU 1: NODE, 32 MiB all-reduce about 2.1 ms (by label)") == 3


def test_json_carries_the_recording_and_the_domains() -> None:
    data = json.loads(run("--from", str(FIXTURES / "l40s-x8-plx.json"), "--json"))
    host = data["hosts"][0]
    assert host["matrix"][0] == "X PIX PXB PXB SYS SYS SYS SYS"
    assert [len(domain["gpus"]) for domain in host["domains"]] == [2, 2, 2, 2]
    assert host["domains"][0]["level"] == "PIX"


def test_a_recording_can_be_written_again(tmp_path: Path) -> None:
    source = FIXTURES / "h200-x4-nvlink.json"
    run("--from", str(source), "--record", str(tmp_path / "copy.json"))
    assert load_recording(tmp_path / "copy.json") == load_recording(source)


def test_a_card_that_the_catalogue_does_not_know_is_named_once(build: Build) -> None:
    message = "NVIDIA X9000: not in the accelerator catalogue; ceilings and sizing are left out until an entry is added"
    assert shown(host_view(build(3, gpu_names={1: "NVIDIA X9000", 2: "NVIDIA X9000"}))).count(f"! {message}") == 1
    assert "catalogue" not in shown(host_view(build(2)))


def test_a_probe_holds_the_free_gpus_and_keeps_its_pairs(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host of three whose first GPU is leased; the probe's own workers are not run."""
    monkeypatch.setenv("RAYLANE_RUNTIME", str(tmp_path))
    monkeypatch.setattr(nvml, "read_host", lambda: build(3))
    held_during: list[dict[str, str]] = []

    def fail_after_the_pairs(host: Host, prober: Prober, leased: dict[str, str], keep: Callable[[Host], Path]) -> Host:
        held_during.append({holder.resource: holder.owner for holder in holders(runtime_folder())})
        assert leased == {"host-0": "llama one"}
        link = replace(host.links[2], measured=LinkMeasurement(Verdict.BROKEN, "hangs"))
        keep(replace(host, links=(*host.links[:2], link)))
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "probe", fail_after_the_pairs)
    chosen = Choice(("host-0",), "the first", second_best=False)
    with closing(take_lease("llama one", ["host-0"], lambda free: chosen, "127.0.0.1", runtime_folder())):
        with pytest.raises(KeyboardInterrupt):
            probed_host()
        assert held_during == [{"host-0": "llama one", "host-1": "probe", "host-2": "probe"}]
        assert [holder.resource for holder in holders(runtime_folder())] == ["host-0"]
    measured = known_hosts(None)[0].links[2].measured
    assert measured is not None
    assert measured.reason == "hangs"


def test_a_recording_cannot_be_probed() -> None:
    with pytest.raises(UsageError, match="--probe measures this host"):
        CliRunner().invoke(app, ["--probe", "--from", "x.json"], catch_exceptions=False)


def test_this_machine_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLANE_RUNTIME", str(tmp_path))
    assert "driver" in run()


def test_measurements_problems_and_broken_pairs_are_shown(build: Build) -> None:
    host = build(3, times_ms={(0, 1): 2.0}, broken=frozenset({(0, 2)}))
    slow = LinkMeasurement(Verdict.OK, "with peer access it hangs", peer_access=False, allreduce_32mb_s=0.004)
    host = replace(host, links=(*host.links[:2], replace(host.links[2], measured=slow)), problems=("GPU 3 is lost",))
    text = shown(host_view(host))
    for words in (
        "2,000 us",
        "ok, no peer access: with peer access it hangs",
        "0 and 2 must not be used together: broken: hangs",
        "! GPU 3 is lost",
        "(measured)",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("name", "hosts_drawn"),
    [
        pytest.param("l40s-x12-three-hosts", ["l40s-1  [", "l40s-2  [", "l40s-3  ["], id="three hosts"),
        pytest.param("l40s-x12-six-switch-pairs", ["l40s-box  ["], id="one box"),
    ],
)
def test_the_mixed_plan_is_drawn(name: str, hosts_drawn: list[str]) -> None:
    hosts = load_recording(FIXTURES / f"{name}.json")
    found = plan(hosts, [Want("llama-8b", 1, 4, 4), Want("llama-70b", 2, 4, 4)])
    text = shown(*placement_view(hosts, found))
    assert "fits; 12 GPUs used, 0 free; every group on its best link" in text
    domains_drawn = ["[B1=B1]", "[B2=B2]", "[B3=B3]", "[B4=B4]", "[A1 A2]", "[A3 A4]"]
    assert all(words in text for words in [*hosts_drawn, *domains_drawn])
    assert placement_data(found)["second_best"] == 0
    assert json.loads(json.dumps(placement_data(found)))["fits"] is True


def test_stranded_and_free_gpus_are_told_apart(build: Build) -> None:
    hosts = [build(3, name="odd"), build(2, name="even")]
    found = plan(hosts, [Want("m", 2, 1, 1)])
    text = shown(*placement_view(hosts, found))
    assert "2 GPUs used, 3 free" in text
    assert "odd   [A1=A1] [x]" in text
    assert "even  [- -]" in text
    assert "stranded: odd odd-2: 0 free GPUs beside it" in text


def test_many_hosts_are_not_all_drawn(build: Build) -> None:
    hosts = [build(1, name=f"h{i}") for i in range(100)]
    assert "and 76 more hosts" in shown(*placement_view(hosts, plan(hosts, [Want("m", 1, 1, 1)])))


def test_a_model_that_may_rest_and_fits_nowhere_is_not_said_to_fit() -> None:
    hosts = load_recording(FIXTURES / "l40s-x12-three-hosts.json")
    text = shown(*placement_view(hosts, plan(hosts, [Want("big", 8, 0, 1)])))
    assert "does not fit: no host can hold one of the models; 0 GPUs used, 12 free" in text
