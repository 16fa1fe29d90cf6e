import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.hosts import Acs, GroupMeasurement, Host, Iommu, LinkLevel, Verdict
from raylane.cluster.recording import load_recording, read_recording, save_recording

Build = Callable[..., Host]
FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "topology"
RECORDINGS = sorted(FIXTURES.glob("*.json"))


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_every_recording_loads_and_says_whether_it_is_real_or_composed_by_hand(path: Path) -> None:
    load_recording(path)
    assert read_recording(path).note.startswith("Real:" if path.stem.endswith("-real") else "Composed by hand")


def test_the_recordings_hold_what_their_names_say() -> None:
    gpus = {path.stem: [len(host.gpus) for host in load_recording(path)] for path in RECORDINGS}
    assert gpus == {
        "h200-x4-nvlink": [4],
        "h200-x4-real": [4],
        "l40s-x12-six-switch-pairs": [12],
        "l40s-x12-three-hosts": [4, 4, 4],
        "l40s-x8-plx": [8],
        "none": [0],
        "one-gpu": [1],
    }


def test_a_host_comes_back_from_a_file_as_it_was(tmp_path: Path, build: Build) -> None:
    host = build(4, lambda a, b: LinkLevel.PIX, times_ms={(0, 1): 1.5}, broken=frozenset({(2, 3)}), mig=frozenset({1}))
    group = GroupMeasurement(tuple(gpu.uuid for gpu in host.gpus), Verdict.BROKEN, "hangs")
    known = replace(host, driver_version="580.1", acs=Acs.REDIRECT, iommu=Iommu.TRANSLATED, groups=(group,))
    nvlinked = build(2, lambda a, b: LinkLevel.NVLINK, name="other")
    nvlinked = replace(nvlinked, links=(replace(nvlinked.links[0], nvlink_count=12),), problems=("GPU 2 is lost",))
    save_recording(tmp_path / "new" / "hosts.json", [known, nvlinked], "test")
    assert load_recording(tmp_path / "new" / "hosts.json") == [known, nvlinked]


def test_absent_values_are_not_written(tmp_path: Path, build: Build) -> None:
    save_recording(tmp_path / "hosts.json", [build(2)], "test")
    assert "null" not in (tmp_path / "hosts.json").read_text()


def test_an_unknown_level_is_kept_as_unknown(tmp_path: Path, build: Build) -> None:
    host = build(2)
    host = replace(host, links=(replace(host.links[0], level=None),))
    save_recording(tmp_path / "hosts.json", [host], "test")
    assert load_recording(tmp_path / "hosts.json")[0].links[0].level is None


def recorded() -> dict[str, Any]:
    data: dict[str, Any] = json.loads((FIXTURES / "l40s-x12-three-hosts.json").read_text())
    return data


def edit(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The recording of three hosts with its first host changed."""
    data = recorded()
    change(data["hosts"][0])
    return data


def set_key(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda host: host.update({key: value})


UUIDS = [gpu["uuid"] for gpu in recorded()["hosts"][0]["gpus"]]
PAIR = {"a": UUIDS[0], "b": UUIDS[1]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(
            edit(lambda host: host["matrix"].__setitem__(0, "X SYS SYS SYS")),
            ["hosts.0.matrix", "not symmetric", "row 0 column 1 is 'SYS'", "row 1 column 0 is 'NODE'"],
            id="an asymmetric matrix",
        ),
        pytest.param(
            edit(lambda host: host["matrix"].pop()), ["4 GPUs need 4 rows of 4", "are: 4 4 4"], id="a row is missing"
        ),
        pytest.param(
            edit(lambda host: host["matrix"].__setitem__(1, "NODE PIX SYS SYS")),
            ["row 1 column 1 is 'PIX'", "itself"],
            id="a link from a GPU to itself",
        ),
        pytest.param(
            edit(set_key("matrix", ["X P2P SYS SYS", "P2P X SYS SYS", "SYS SYS X NODE", "SYS SYS NODE X"])),
            ["row 0 column 1", "'P2P' is none of"],
            id="an unknown level",
        ),
        pytest.param(
            edit(lambda host: host["gpus"][1].update(uuid=UUIDS[0])), [UUIDS[0], "more than once"], id="a uuid twice"
        ),
        pytest.param(
            edit(lambda host: host["gpus"][1].update(index=0)), ["index 0", "more than once"], id="an index twice"
        ),
        pytest.param(edit(set_key("name", "l40s-2")), ["name l40s-2", "more than once"], id="a host name twice"),
        pytest.param(
            edit(set_key("pairs", [{**PAIR, "b": "GPU-none"}])),
            ["hosts.0.pairs.0", "unknown GPU 'GPU-none'"],
            id="a link to an unknown GPU",
        ),
        pytest.param(edit(set_key("pairs", [PAIR, PAIR])), ["pairs.1", "more than once"], id="a pair twice"),
        pytest.param(
            edit(set_key("pairs", [{"a": UUIDS[1], "b": UUIDS[0]}])),
            ["must come before"],
            id="a pair the wrong way round",
        ),
        pytest.param(
            edit(set_key("groups", [{"uuids": [UUIDS[0], "GPU-none"], "verdict": "ok"}])),
            ["hosts.0.groups.0", "unknown GPU"],
            id="a group with an unknown GPU",
        ),
        pytest.param(
            edit(set_key("pairs", [{**PAIR, "measured": {"verdict": "ok", "allreduce_32mb_s": 0}}])),
            ["allreduce_32mb_s", "greater than 0"],
            id="a time of nought",
        ),
        pytest.param(
            edit(set_key("pairs", [{**PAIR, "measured": {"verdict": "ok", "allreduce_32mb_s": float("inf")}}])),
            ["hosts.0.pairs.0.measured.allreduce_32mb_s", "finite number", "inf"],
            id="a time without end",
        ),
        pytest.param(
            edit(set_key("pairs", [{**PAIR, "measured": {"verdict": "ok", "allreduce_32mb_s": 1e305}}])),
            ["allreduce_32mb_s", "1e+305"],
            id="a time too long to count in",
        ),
        pytest.param(
            edit(set_key("groups", [{"uuids": UUIDS[:3], "verdict": "ok", "allreduce_32mb_s": float("nan")}])),
            ["hosts.0.groups.0.allreduce_32mb_s", "finite number"],
            id="a time that is no number",
        ),
        pytest.param(
            edit(set_key("pairs", [{**PAIR, "measured": {"verdict": "ok", "a_to_b_bytes_per_s": 1e-305}}])),
            ["a_to_b_bytes_per_s", "1e-305"],
            id="a rate below a byte",
        ),
        pytest.param(
            edit(lambda host: host["gpus"][0].update(pcie_width_now=-1)),
            ["hosts.0.gpus.0.pcie_width_now", "-1"],
            id="fewer than no lanes",
        ),
        pytest.param(
            edit(lambda host: host["gpus"][0].update(index=-4)), ["hosts.0.gpus.0.index", "-4"], id="a negative index"
        ),
        pytest.param(edit(set_key("colour", "red")), ["hosts.0.colour", "unknown key"], id="an unknown key of a host"),
        pytest.param(
            edit(lambda host: host["gpus"][0].update(colour="red")), ["gpus.0.colour"], id="an unknown key of a GPU"
        ),
        pytest.param({"hosts": []}, ["raylane_topology", "missing"], id="some other file"),
        pytest.param({**recorded(), "raylane_topology": 2}, ["raylane_topology", "2"], id="a later version"),
    ],
)
def test_a_recording_that_is_wrong_is_explained(tmp_path: Path, data: dict[str, Any], words: list[str]) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError) as error:
        load_recording(path)
    assert all(word in str(error.value) for word in [str(path), *words])


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "No such file"), ("{", "not valid JSON"), ("[" * 100_000, "not valid JSON")],
    ids=["no file", "no JSON", "too deep"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=words):
        load_recording(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, build: Build) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedError, match="cannot be written"):
        save_recording(tmp_path / "file" / "hosts.json", [build(1)], "test")
