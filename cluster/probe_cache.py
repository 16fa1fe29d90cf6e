"""Keep what a probe measured and put it back on a freshly read host, as long as its GPUs and driver are the same."""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from raylane.cluster.errors import UsageError
from raylane.cluster.hosts import GroupMeasurement, Host, LinkMeasurement
from raylane.cluster.recording import load_recording, save_recording


def cache_path(folder: Path, host: Host) -> Path:
    """Where this host's measurements are written: another set of GPUs or another driver is another file."""
    key = "\n".join([host.driver_version or "unknown", *sorted(gpu.uuid for gpu in host.gpus)])
    return folder / f"probe-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def save_measurements(folder: Path, host: Host) -> Path:
    """Write a probed host to its place; FailedError if the folder cannot be written."""
    path = cache_path(folder, host)
    save_recording(path, [host], "Measured by raylane topology --probe on this host.")
    return path


def with_measurements(folder: Path, host: Host) -> Host:
    """The host with the kept measurements of its links and groups, the newest of each, as far as there are any.

    Whatever was measured between GPUs that are still there counts, whichever others came or went; another driver's
    measurements do not. A file that cannot be understood is named in `problems` and not used.
    """
    measured: dict[frozenset[str], LinkMeasurement] = {}
    groups: dict[frozenset[str], GroupMeasurement] = {}
    problems = list(host.problems)
    for path in oldest_first(folder.glob("probe-*.json")):
        try:
            kept = load_recording(path)[0]
        except (UsageError, IndexError) as error:
            problems.append(f"measurements not used: {error}; delete {path}")
            continue
        if kept.driver_version == host.driver_version:
            measured |= {frozenset((link.a, link.b)): link.measured for link in kept.links if link.measured}
            groups |= {frozenset(group.uuids): group for group in kept.groups}
    uuids = {gpu.uuid for gpu in host.gpus}
    return replace(
        host,
        links=tuple(replace(link, measured=measured.get(frozenset((link.a, link.b)))) for link in host.links),
        groups=tuple(group for members, group in groups.items() if members <= uuids),
        problems=tuple(problems),
    )


def oldest_first(paths: Iterable[Path]) -> list[Path]:
    """The files by the time they were written; those of one time by name. What has gone meanwhile is left out."""
    found = []
    for path in paths:
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, path.name, path))
    return [path for _, _, path in sorted(found)]
