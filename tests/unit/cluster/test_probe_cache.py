from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from raylane.cluster.errors import FailedError
from raylane.cluster.hosts import GroupMeasurement, Host, Verdict
from raylane.cluster.probe_cache import cache_path, save_measurements, with_measurements

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


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda host: replace(host, driver_version="580.2"), id="another driver"),
        pytest.param(lambda host: replace(host, gpus=host.gpus[:2], links=host.links[:1]), id="a GPU was taken out"),
    ],
)
def test_another_driver_or_gpu_has_no_measurements(
    tmp_path: Path, measured: Host, other: Callable[[Host], Host]
) -> None:
    save_measurements(tmp_path, measured)
    now = other(unmeasured(measured))
    assert with_measurements(tmp_path, now) == now


def test_a_damaged_file_is_named_and_not_used(tmp_path: Path, measured: Host) -> None:
    cache_path(tmp_path, measured).write_text("{}")
    found = with_measurements(tmp_path, unmeasured(measured))
    assert found.links == unmeasured(measured).links
    assert "measurements not used" in found.problems[0]


def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path: Path, measured: Host) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedError, match="cannot be written"):
        save_measurements(tmp_path / "file", measured)
