"""Keep what a probe measured, by GPU uuids and driver version, and put it back on a freshly read host."""

import hashlib
from dataclasses import replace
from pathlib import Path

from raylane.cluster.errors import UsageError
from raylane.cluster.hosts import Host
from raylane.cluster.recording import load_recording, save_recording


def cache_path(folder: Path, host: Host) -> Path:
    """Where a host's measurements lie: another GPU or another driver is another file."""
    key = "\n".join([host.driver_version or "unknown", *sorted(gpu.uuid for gpu in host.gpus)])
    return folder / f"probe-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def save_measurements(folder: Path, host: Host) -> Path:
    """Write a probed host to its place; FailedError if the folder cannot be written."""
    path = cache_path(folder, host)
    save_recording(path, [host], "Measured by raylane topology --probe on this host.")
    return path


def with_measurements(folder: Path, host: Host) -> Host:
    """The host with the kept measurements of its own GPUs and driver, if there are any.

    A file that does not fit or cannot be understood is named in `problems` and not used.
    """
    path = cache_path(folder, host)
    if not path.exists():
        return host
    try:
        kept = load_recording(path)[0]
    except (UsageError, IndexError) as error:
        return replace(host, problems=(*host.problems, f"measurements not used: {error}"))
    measured = {frozenset((link.a, link.b)): link.measured for link in kept.links}
    links = tuple(replace(link, measured=measured.get(frozenset((link.a, link.b)))) for link in host.links)
    return replace(host, links=links, groups=kept.groups)
