import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raylane.cluster.errors import FailedError
from raylane.cluster.hosts import GroupMeasurement, Host, Verdict
from raylane.cluster.probe_cache import cache_path, oldest_first, save_measurements, with_measurements

Build = Callable[..., Host]


@pytest.fixture
def measured(build: Build) -> Host:
    host = build(3, times_ms={(0, 1): 2.0}, broken=frozenset({(0, 2)}))
    group = GroupMeasurement(tuple(gpu.uuid for gpu in host.gpus), Verdict.OK, allreduce_32mb_s=0.01)
    return replace(host, driver_version="580.1", groups=(group,))


def unmeasured(host: Host) -> Host:
    return replace(host, links=tuple(replace(link, measured=None) for link in host.links), groups=())


def test_measurements_come_back_on_the_same_gpus_and_driver(tmp_path: Path, measured: Host) -> None:
    save_measurements(tmp_path, measured)
    assert with_measurements(tmp_path, unmeasured(measured)) == measured


def test_what_is_read_now_is_kept_beside_what_was_measured(tmp_path: Path, measured: Host) -> None:
    save_measurements(tmp_path, measured)
    now = replace(unmeasured(measured), problems=("something new",))
    now = replace(now, gpus=(replace(now.gpus[0], processes=(5,)), *now.gpus[1:]))
    found = with_measurements(tmp_path, now)
    assert (found.gpus, found.problems) == (now.gpus, now.problems)
    assert found.links == measured.links


@pytest.mark.parametrize("driver", ["580.2", None])
def test_another_driver_has_no_measurements(tmp_path: Path, measured: Host, driver: str | None) -> None:
    save_measurements(tmp_path, measured)
    now = replace(unmeasured(measured), driver_version=driver)
    assert with_measurements(tmp_path, now) == now


def without_last_gpu(host: Host) -> Host:
    gpus = host.gpus[:-1]
    left = {gpu.uuid for gpu in gpus}
    return replace(host, gpus=gpus, links=tuple(link for link in host.links if {link.a, link.b} <= left))


def test_pairs_that_are_still_there_keep_their_measurements_when_another_gpu_drops_out(
    tmp_path: Path, build: Build
) -> None:
    host = build(4, times_ms={(0, 1): 2.0}, broken=frozenset({(0, 2)}))
    uuids = tuple(gpu.uuid for gpu in host.gpus)
    gone, left = GroupMeasurement(uuids, Verdict.BROKEN), GroupMeasurement(uuids[:3], Verdict.BROKEN)
    save_measurements(tmp_path, replace(host, groups=(gone, left)))
    now = without_last_gpu(unmeasured(host))
    assert with_measurements(tmp_path, now) == replace(without_last_gpu(host), groups=(left,))


def test_a_new_gpu_leaves_the_others_measured(tmp_path: Path, build: Build) -> None:
    host = build(4, times_ms={(0, 1): 2.0}, broken=frozenset({(0, 2)}))
    save_measurements(tmp_path, without_last_gpu(host))
    assert with_measurements(tmp_path, unmeasured(host)) == host


@pytest.mark.parametrize("newer", ["all three", "the first two"])
def test_of_two_probes_the_newer_counts(tmp_path: Path, build: Build, newer: str) -> None:
    probed = {"all three": build(3, times_ms={(0, 1): 2.0}), "the first two": build(2, times_ms={(0, 1): 3.0})}
    paths = {which: save_measurements(tmp_path, host) for which, host in probed.items()}
    for which, path in paths.items():
        os.utime(path, (2000, 2000) if which == newer else (1000, 1000))
    found = with_measurements(tmp_path, unmeasured(probed["all three"]))
    assert found.links[0].measured == probed[newer].links[0].measured


def test_a_folder_that_is_not_there_has_no_measurements(tmp_path: Path, measured: Host) -> None:
    assert with_measurements(tmp_path / "absent", unmeasured(measured)) == unmeasured(measured)


def test_a_damaged_file_is_named_and_not_used(tmp_path: Path, measured: Host) -> None:
    cache_path(tmp_path, measured).write_text("{}")
    found = with_measurements(tmp_path, unmeasured(measured))
    assert found.links == unmeasured(measured).links
    assert found.problems[0].startswith("measurements not used: ")
    assert found.problems[0].endswith(f"; delete {cache_path(tmp_path, measured)}")


def test_a_file_that_goes_while_they_are_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("")
    assert oldest_first([tmp_path / "gone", tmp_path / "there"]) == [tmp_path / "there"]


def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path: Path, measured: Host) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedError, match="cannot be written"):
        save_measurements(tmp_path / "file", measured)
