"""Hosts to and from a JSON file, with clear errors. The link matrix is written as `nvidia-smi topo -m` prints it."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.hosts import Acs, Gpu, GroupMeasurement, Host, Iommu, Link, LinkLevel, LinkMeasurement, PeerStatus
from raylane.cluster.strict import StrictModel

SELF, UNKNOWN = "X", "?"
TOPOLOGY_VARIABLE = "RAYLANE_TOPOLOGY"  # a recording to take GPUs from instead of NVML


class PairRecord(StrictModel):
    """What is known of a pair beside its level in the matrix. `a` comes before `b` in the list of GPUs."""

    a: str
    b: str
    p2p_read: PeerStatus | None = None
    p2p_write: PeerStatus | None = None
    measured: LinkMeasurement | None = None


class HostRecord(StrictModel):
    """One host. `matrix` has a row for each GPU: X for itself, NV<links>, PIX, PXB, PHB, NODE, SYS or ? (unknown)."""

    name: str = Field(min_length=1)
    driver_version: str | None = None
    acs: Acs | None = None
    iommu: Iommu | None = None
    gpus: tuple[Gpu, ...] = ()
    matrix: tuple[str, ...] = ()
    p2p: PeerStatus | None = None
    """Read and write status of every pair that `pairs` does not name."""
    pairs: tuple[PairRecord, ...] = ()
    groups: tuple[GroupMeasurement, ...] = ()
    problems: tuple[str, ...] = ()


class Recording(StrictModel):
    """A file of hosts. `note` says where it comes from: recorded on a machine, or composed by hand and from what."""

    raylane_topology: Literal[1]
    note: str
    hosts: tuple[HostRecord, ...]


def load_recording(path: Path) -> list[Host]:
    """The hosts of a recording.

    UsageError if the file cannot be read, is not such a file, or contradicts itself: an asymmetric matrix, a uuid or
    host name twice, a link to a GPU that is not there.
    """
    recording = read_recording(path)
    once((host.name for host in recording.hosts), f"{path}: hosts", "name")
    once((gpu.uuid for host in recording.hosts for gpu in host.gpus), f"{path}: hosts", "uuid")
    return [to_host(record, f"{path}: hosts.{i}") for i, record in enumerate(recording.hosts)]


def read_recording(path: Path) -> Recording:
    """The file as it is, note included, its values checked one by one but not against each other."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON: {error}") from error
    return Recording.from_data(data, str(path))


def save_recording(path: Path, hosts: Iterable[Host], note: str) -> None:
    """Write hosts to a file, replacing it at once; FailedError if that is not possible."""
    recording = Recording(raylane_topology=1, note=note, hosts=tuple(to_record(host) for host in hosts))
    scratch = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(dump(recording), encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise FailedError(f"{path}: cannot be written: {error.strerror}") from error


def dump(recording: Recording) -> str:
    """The recording as JSON text with absent values left out."""
    return json.dumps(present(recording.model_dump(mode="json")), indent=1) + "\n"


def present(value: Any) -> Any:
    """The same plain data without keys whose value is None."""
    if isinstance(value, dict):
        return {key: present(item) for key, item in value.items() if item is not None}
    return [present(item) for item in value] if isinstance(value, list | tuple) else value


def once(values: Iterable[str], where: str, what: str) -> None:
    """UsageError naming the values that occur twice."""
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise UsageError(f"{where}: {what} {', '.join(twice)} occurs more than once")


def to_host(record: HostRecord, where: str) -> Host:
    """One record as a Host; `where` begins error messages."""
    uuids = [gpu.uuid for gpu in record.gpus]
    once((str(gpu.index) for gpu in record.gpus), f"{where}.gpus", "index")
    levels = parse_matrix(record.matrix, len(uuids), f"{where}.matrix")
    pairs = by_pair(record.pairs, uuids, f"{where}.pairs")
    for i, group in enumerate(record.groups):
        known(group.uuids, uuids, f"{where}.groups.{i}")
    links = tuple(
        make_link(a, b, levels[i, j], pairs.get((a, b)), record.p2p)
        for (i, a), (j, b) in combinations(enumerate(uuids), 2)
    )
    return Host(
        name=record.name,
        gpus=record.gpus,
        links=links,
        driver_version=record.driver_version,
        acs=record.acs,
        iommu=record.iommu,
        groups=record.groups,
        problems=record.problems,
    )


def make_link(
    a: str, b: str, level: tuple[LinkLevel | None, int | None], pair: PairRecord | None, p2p: PeerStatus | None
) -> Link:
    """The link of a pair from the matrix and, where there is one, its own record."""
    if pair is None:
        return Link(a, b, *level, p2p_read=p2p, p2p_write=p2p)
    return Link(a, b, *level, p2p_read=pair.p2p_read or p2p, p2p_write=pair.p2p_write or p2p, measured=pair.measured)


def parse_matrix(
    rows: tuple[str, ...], size: int, where: str
) -> dict[tuple[int, int], tuple[LinkLevel | None, int | None]]:
    """(level, NVLink links) of each pair of indices i < j. UsageError unless the matrix is square and symmetric."""
    cells = [row.split() for row in rows]
    if [len(row) for row in cells] != [size] * size:
        shape = " ".join(str(len(row)) for row in cells) or "none"
        raise UsageError(f"{where}: {size} GPUs need {size} rows of {size} entries; entries per row are: {shape}")
    for i in range(size):
        if cells[i][i] != SELF:
            raise UsageError(f"{where}: row {i} column {i} is {cells[i][i]!r}; a GPU and itself must be {SELF}")
        for j in range(i):
            if cells[i][j] != cells[j][i]:
                above, below = f"row {j} column {i} is {cells[j][i]!r}", f"row {i} column {j} is {cells[i][j]!r}"
                raise UsageError(f"{where}: not symmetric: {above}, {below}")
    return {(j, i): parse_level(cells[j][i], f"{where}: row {j} column {i}") for i in range(size) for j in range(i)}


def parse_level(word: str, where: str) -> tuple[LinkLevel | None, int | None]:
    """PIX -> (PIX, None), NV18 -> (NVLINK, 18), ? -> (None, None)."""
    if word == UNKNOWN:
        return None, None
    if word.startswith("NV") and word[2:].isdecimal() and int(word[2:]) > 0:
        return LinkLevel.NVLINK, int(word[2:])
    if word in set(LinkLevel) - {LinkLevel.NVLINK}:
        return LinkLevel(word), None
    raise UsageError(f"{where}: {word!r} is none of NV<links>, PIX, PXB, PHB, NODE, SYS, {UNKNOWN}")


def by_pair(pairs: tuple[PairRecord, ...], uuids: list[str], where: str) -> dict[tuple[str, str], PairRecord]:
    """The pair records by (a, b), checked against the host's GPUs."""
    found: dict[tuple[str, str], PairRecord] = {}
    for i, pair in enumerate(pairs):
        known((pair.a, pair.b), uuids, f"{where}.{i}")
        if uuids.index(pair.a) >= uuids.index(pair.b):
            raise UsageError(f"{where}.{i}: a ({pair.a}) must come before b ({pair.b}) in the list of GPUs")
        if (pair.a, pair.b) in found:
            raise UsageError(f"{where}.{i}: the pair {pair.a}, {pair.b} occurs more than once")
        found[pair.a, pair.b] = pair
    return found


def known(named: tuple[str, ...], uuids: list[str], where: str) -> None:
    """UsageError for a uuid that the host does not have."""
    for uuid in named:
        if uuid not in uuids:
            raise UsageError(f"{where}: link to an unknown GPU {uuid!r}; the host has {', '.join(uuids) or 'none'}")


def to_record(host: Host) -> HostRecord:
    """A Host as it is written."""
    pairs = tuple(
        PairRecord(a=link.a, b=link.b, p2p_read=link.p2p_read, p2p_write=link.p2p_write, measured=link.measured)
        for link in host.links
        if link.p2p_read or link.p2p_write or link.measured
    )
    fields = {key: value for key, value in vars(host).items() if key not in ("links", "gpus", "groups")}
    return HostRecord(
        **fields,
        gpus=host.gpus,
        matrix=tuple(" ".join(matrix_word(host, a, b) for b in host.gpus) for a in host.gpus),
        pairs=pairs,
        groups=host.groups,
    )


def matrix_word(host: Host, a: Gpu, b: Gpu) -> str:
    """One entry of the matrix, as `nvidia-smi topo -m` writes it."""
    if a.uuid == b.uuid:
        return SELF
    link = host.link(a.uuid, b.uuid)
    if link.level is LinkLevel.NVLINK:
        return f"NV{link.nvlink_count or 1}"
    return link.level or UNKNOWN


def recording_in_use() -> Path | None:
    """The recording whose GPUs stand for this machine's; None where the GPUs are real."""
    path = os.environ.get(TOPOLOGY_VARIABLE)
    return Path(path) if path else None
