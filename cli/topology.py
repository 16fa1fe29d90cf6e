"""`raylane topology`: GPUs, links and domains of this host or of a recording."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.text import Text

from raylane.cli.tables import WholeTable, table_console
from raylane.cluster.catalog import find_accelerator, unknown_accelerator_message
from raylane.cluster.domains import Domain, domains
from raylane.cluster.errors import UsageError
from raylane.cluster.hosts import Gpu, Host, Link, Verdict
from raylane.cluster.links import host_links
from raylane.cluster.recording import load_recording, matrix_word, present, read_recording, save_recording, to_record

RECORDED = "Recorded by raylane topology --record."


def topology(
    from_file: Annotated[Path | None, typer.Option("--from", help="Read a recording instead of this host.")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Measure every pair now; takes the GPUs for a while.")] = False,
    record: Annotated[Path | None, typer.Option("--record", help="Write what is known to this file.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the GPUs, how they are linked, and which of them belong together."""
    if probe and from_file is not None:
        raise UsageError(f"--probe measures this host and --from reads {from_file}: give one of the two")
    hosts = probed_host() if probe else known_hosts(from_file)
    if record is not None:
        save_recording(record, hosts, RECORDED if from_file is None else read_recording(from_file).note)
    if json_output:
        typer.echo(json.dumps({"hosts": [host_data(host) for host in hosts]}, indent=2))
        return
    console = table_console()
    for host in hosts:
        console.print(host_view(host))


def known_hosts(from_file: Path | None) -> list[Host]:
    """The hosts of a recording, or this one by NVML with the measurements kept from its last probe."""
    if from_file is not None:
        return load_recording(from_file)
    from raylane.cluster.leases import runtime_folder
    from raylane.cluster.nvml import read_host
    from raylane.cluster.probe_cache import with_measurements

    return [with_measurements(runtime_folder(), read_host())]


def probed_host() -> list[Host]:
    """This host, measured now on GPUs that are leased for as long; the measurements are kept for later."""
    from raylane.cluster.leases import hold_free_gpus, runtime_folder
    from raylane.cluster.probe import Prober, probe
    from raylane.cluster.probe_cache import save_measurements

    console, folder = Console(stderr=True), runtime_folder()
    prober = Prober(progress=lambda line: console.print(line, highlight=False))
    uuids = [gpu.uuid for gpu in known_hosts(None)[0].gpus]
    with hold_free_gpus("probe", uuids, folder) as leased:
        host = known_hosts(None)[0]  # again: the GPUs' processes count from when nobody can take the GPUs any more
        measured = probe(host, prober, leased, keep=lambda pairs: save_measurements(folder, pairs))
    console.print(f"kept in {save_measurements(folder, measured)}", highlight=False, soft_wrap=True)
    return [measured]


def host_data(host: Host) -> dict[str, Any]:
    """A host as plain data: the recording's fields and its domains."""
    grouped = [
        {"gpus": list(domain.uuids), "level": domain.level, "seconds": domain.seconds, "source": domain.source}
        for domain in domains(host)
    ]
    data: dict[str, Any] = present({**to_record(host).model_dump(mode="json"), "domains": grouped})
    return data


def host_view(host: Host) -> RenderableType:
    """Everything about a host for a terminal."""
    parts: list[RenderableType] = [Text(headline(host), style="bold")]
    if host.gpus:
        parts += [gpu_table(host), uuid_lines(host)]
    if len(host.gpus) > 1:
        parts += [matrix_table(host), *measured_tables(host), domain_lines(host)]
    unknown = [unknown_accelerator_message(name) for name in kinds(host) if find_accelerator(name) is None]
    parts += [Text(f"! {problem}", style="yellow") for problem in (*host.problems, *unknown)]
    return Group(*parts, Text())


def headline(host: Host) -> str:
    """Name, number and kind of GPUs, driver, and the states that decide whether peers reach each other."""
    gpus = f"{len(host.gpus)} x {', '.join(kinds(host))}" if host.gpus else "no GPU"
    driver = f"driver {host.driver_version}" if host.driver_version else "no driver"
    return f"{host.name}: {gpus}; {driver}; IOMMU {host.iommu or 'unknown'}, ACS {host.acs or 'unknown'}"


def kinds(host: Host) -> list[str]:
    """The driver's name of each kind of GPU, once."""
    return sorted({gpu.name for gpu in host.gpus})


def gpu_table(host: Host) -> WholeTable:
    """One row for each GPU; PCIe as generation and lanes, an idle GPU runs its slot at generation 1."""
    table = WholeTable("GPU", "memory", "bus", "NUMA", "PCIe now/max", "MIG", "ECC", "processes", box=box.SIMPLE)
    for gpu in host.gpus:
        table.add_row(*(Text(cell) for cell in gpu_cells(gpu)))
    return table


def gpu_cells(gpu: Gpu) -> list[str]:
    memory = None if gpu.memory_bytes is None else f"{gpu.memory_bytes // 2**20:,} MiB"
    processes = None if gpu.processes is None else ", ".join(str(pid) for pid in gpu.processes) or "none"
    bus = None if gpu.pci_bus_id is None else gpu.pci_bus_id.removeprefix("0000")
    slots = (
        f"{shown(gpu.pcie_gen_now)}/{shown(gpu.pcie_gen_max)} x{shown(gpu.pcie_width_now)}/{shown(gpu.pcie_width_max)}"
    )
    return [
        *(str(gpu.index), shown(memory), shown(bus), shown(gpu.numa_node), slots),
        *(on_off(gpu.mig), on_off(gpu.ecc), shown(processes)),
    ]


def uuid_lines(host: Host) -> Text:
    return Text("\n".join(f"  GPU {gpu.index}  {gpu.uuid}" for gpu in host.gpus))


def shown(value: object) -> str:
    """The value, or a dash where it is not known."""
    return "-" if value is None else str(value)


def on_off(value: bool | None) -> str:
    return "-" if value is None else "on" if value else "off"


def matrix_table(host: Host) -> WholeTable:
    """The link of every pair, as in `nvidia-smi topo -m`."""
    table = WholeTable("", *(str(gpu.index) for gpu in host.gpus), box=box.SIMPLE)
    for a in host.gpus:
        table.add_row(str(a.index), *(matrix_word(host, a, b) for b in host.gpus))
    return table


def measured_tables(host: Host) -> list[WholeTable]:
    """What the probe measured, pair by pair and then group by group; empty without a probe."""
    rows = [link for link in host.links if link.measured is not None]
    tables = []
    if rows:
        table = WholeTable("GPUs", "state", "there", "back", "latency", "8 KB", "256 KB", "32 MB", box=box.SIMPLE)
        table.title = "measured: copies, half a round trip of 8 bytes, all-reduces"
        for link in rows:
            table.add_row(*(Text(cell) for cell in measured_cells(host, link)))
        tables.append(table)
    if host.groups:
        table = WholeTable("GPUs", "state", "8 KB", "256 KB", "32 MB", box=box.SIMPLE)
        for group in host.groups:
            names = ", ".join(str(host.gpu(uuid).index) for uuid in group.uuids)
            times = (group.allreduce_8kb_s, group.allreduce_256kb_s, group.allreduce_32mb_s)
            state = group.verdict if group.reason is None else f"{group.verdict}: {group.reason}"
            table.add_row(names, Text(state), *(microseconds(time_s) for time_s in times))
        tables.append(table)
    return tables


def measured_cells(host: Host, link: Link) -> list[str]:
    measured = link.measured
    if measured is None:
        return []
    state = {True: "ok", False: "ok, no peer access", None: "ok"}[measured.peer_access]
    if measured.verdict is Verdict.BROKEN or measured.reason:
        state = f"{state if measured.verdict is Verdict.OK else 'broken'}: {measured.reason}"
    times = (measured.latency_s, measured.allreduce_8kb_s, measured.allreduce_256kb_s, measured.allreduce_32mb_s)
    return [
        f"{host.gpu(link.a).index}, {host.gpu(link.b).index}",
        state,
        *(rate(value) for value in (measured.a_to_b_bytes_per_s, measured.b_to_a_bytes_per_s)),
        *(microseconds(time_s) for time_s in times),
    ]


def rate(bytes_per_s: float | None) -> str:
    return "-" if bytes_per_s is None else f"{bytes_per_s / 1e9:.1f} GB/s"


def microseconds(time_s: float | None) -> str:
    return "-" if time_s is None else f"{time_s * 1e6:,.0f} us"


def domain_lines(host: Host) -> Text:
    """The host's domains and what their slowest link is known by."""
    lines = [f"  {domain_line(host, domain)}" for domain in domains(host)]
    broken = [
        f"  {host.gpu(link.a).index} and {host.gpu(link.b).index} must not be used together: {score.reason}"
        for link in host.links
        if {link.a, link.b} <= set(host_links(host).uuids)
        and not (score := host_links(host).score(link.a, link.b)).usable
    ]
    return Text("\n".join(["domains (GPUs that belong together):", *lines, *broken]))


def domain_line(host: Host, domain: Domain) -> str:
    gpus = " + ".join(f"GPU {host.gpu(uuid).index}" for uuid in domain.uuids)
    if domain.seconds is None:
        return f"{gpus}: alone"
    how = {"measured": "measured", "similar": "like its measured neighbours", "label": "by label"}[
        domain.source or "label"
    ]
    return f"{gpus}: {domain.level or 'unknown link'}, 32 MiB all-reduce about {domain.seconds * 1e3:.2g} ms ({how})"
