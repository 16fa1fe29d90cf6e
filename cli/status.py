"""`raylane status`: models, replicas, and hosts with their domains, GPUs and who has them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.text import Text

from raylane.cli.deploy import Address, AsJson, connected
from raylane.cli.tables import WholeTable, table_console

if TYPE_CHECKING:
    from raylane.deployments.directory.cluster_view import DomainView, GpuView, HostView
    from raylane.deployments.directory.reports import ReplicaReport, Snapshot
    from raylane.deployments.rollout.serve_api import AppStatus


def status(address: Address = "auto", json_output: AsJson = False) -> None:
    """What is deployed: models, replicas and their load; hosts, domains and GPUs, and who has them."""
    with connected(address) as api:
        from raylane.deployments.directory.cluster_view import cluster_view
        from raylane.deployments.rollout.rollout import alive_nodes, snapshot
        from raylane.deployments.rollout.sight import look_everywhere

        applications = [s for name, s in api.state().statuses.items() if name.startswith("raylane-")]
        known = snapshot()
        hosts = cluster_view(look_everywhere(alive_nodes()), known.replicas if known else ())
    if json_output:
        typer.echo(json.dumps(status_data(applications, known, hosts), indent=2))
        return
    console = table_console()
    for line in application_lines(applications):
        console.print(line, highlight=False)
    if known is not None and known.replicas:
        console.print(replica_table(known.replicas, hosts))
    for host in hosts:
        console.print(Text(host_line(host), style="bold"))
        if host.domains:
            console.print(gpu_table(host))
    for text in problems(known.replicas if known else (), hosts):
        console.print(text, soft_wrap=True)


def status_data(
    applications: "Sequence[AppStatus]", known: "Snapshot | None", hosts: "Sequence[HostView]"
) -> dict[str, object]:
    """All of it as plain data."""
    return {
        "applications": [asdict(application) for application in applications],
        "directory": public(known),
        "hosts": [asdict(host) for host in hosts],
    }


def public(known: "Snapshot | None") -> dict[str, object] | None:
    """The snapshot without the engines' keys."""
    if known is None:
        return None
    data = asdict(known)
    for replica in data["replicas"]:
        del replica["api_key"]
    return data


def application_lines(applications: "Sequence[AppStatus]") -> list[str]:
    """A line for each model and for the gateway."""
    from raylane.deployments.rollout.rollout import display_name

    return [
        f"{display_name(application.name)}: {application.status.lower()}, "
        f"{application.running_replicas}/{application.target_replicas or 0} replicas"
        for application in applications
    ]


def replica_table(replicas: "Sequence[ReplicaReport]", hosts: "Sequence[HostView]") -> WholeTable:
    """One row for each replica."""
    index_of = {gpu.uuid: gpu.index for host in hosts for gpu in host.gpus()}
    table = WholeTable(box=box.SIMPLE)
    whole = max((len(r.replica_id) for r in replicas), default=0)  # `raylane move` asks for it
    for head in ("model", "replica", "state", "host", "GPUs", "running", "waiting", "KV use", "started in"):
        table.add_column(head, min_width=whole if head == "replica" else None)
    for r in replicas:
        table.add_row(
            *(r.model, r.replica_id, r.state.value, r.node_ip, gpus_of(r, index_of)),
            *(shown(r.load.running), shown(r.load.waiting)),
            "-" if r.load.kv_use is None else f"{r.load.kv_use:.0%}",
            "-" if r.started_s is None else f"{r.started_s:.0f} s",
        )
    return table


def gpus_of(replica: "ReplicaReport", index_of: dict[str, int]) -> str:
    """Indices on the host where known, uuids otherwise, and what is to be said of them."""
    if not replica.gpu_uuids:
        return "none"
    real = replica.state == "ready" and replica.engine_kind != "simulator"
    marks = " (second best)" if replica.second_best else ""
    marks += " WRONG" if replica.gpu_problem else " (use unknown)" if real and replica.held_gpus is None else ""
    return ", ".join(str(index_of.get(uuid, uuid)) for uuid in replica.gpu_uuids) + marks


def host_line(host: "HostView") -> str:
    """The host, its GPUs and how many are free."""
    gpus = host.gpus()
    where = host.name if host.name == host.address else f"{host.name} at {host.address}"
    if not gpus:
        return f"{where}: no GPU" if not host.problems else where
    counts = [f"{sum(gpu.use == use for gpu in gpus)} {use}" for use in sorted({gpu.use for gpu in gpus})]
    return f"{where}: {len(gpus)} x {host.gpu_name}; {', '.join(counts)}"


def gpu_table(host: "HostView") -> WholeTable:
    """One row for each GPU, domain by domain."""
    table = WholeTable("domain", "GPU", "bus", "NUMA", "has it", box=box.SIMPLE)
    for domain in host.domains:
        for gpu in domain.gpus:
            bus = "-" if gpu.pci_bus_id is None else gpu.pci_bus_id.removeprefix("0000")
            first = domain_text(domain) if gpu is domain.gpus[0] else ""
            table.add_row(first, str(gpu.index), bus, shown(gpu.numa_node), use_text(gpu))
    return table


def domain_text(domain: "DomainView") -> str:
    """The domain's slowest link and what it is known by."""
    if domain.seconds is None:
        return "alone"
    how = "" if domain.source is None else f" ({'by ' if domain.source == 'label' else ''}{domain.source})"
    return f"{domain.level or 'unknown link'}, {domain.seconds * 1e3:.2g} ms{how}"


def use_text(gpu: "GpuView") -> str:
    """Who has the GPU."""
    others = ", ".join(str(pid) for pid in gpu.foreign_pids or ())
    if gpu.use == "free":
        return "free"
    if gpu.use == "foreign":
        return f"process {others}"
    text = f"{gpu.model or 'someone'} {gpu.replica_id or ''}".strip()
    text += " (second best)" if gpu.second_best else ""
    text += " WRONG" if gpu.problem else ""
    return text + (f"; also process {others}" if others else "")


def problems(replicas: "Sequence[ReplicaReport]", hosts: "Sequence[HostView]") -> list[Text]:
    """What is wrong, a line each: engines on other GPUs than leased, then what hosts could not tell."""
    wrong = [Text(f"error: {r.model} {r.replica_id}: {r.gpu_problem}", style="red") for r in replicas if r.gpu_problem]
    return wrong + [Text(f"! {host.name}: {problem}", style="yellow") for host in hosts for problem in host.problems]


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
