"""The commands by name: where each is, and what `raylane --help` says of it without importing it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A command, or a group of commands, and the first line of its help."""

    module: str  # of raylane.cli
    name: str
    help: str


COMMANDS = {
    "demo": Place(
        "demo",
        "demo",
        "Serve two models on this machine, load both at once, and report speed and cost.",
    ),
    "deploy": Place(
        "deploy",
        "deploy",
        "Put models on the running cluster; an edit restarts only the models whose own block changed.",
    ),
    "status": Place(
        "status",
        "status",
        "What is deployed: models, replicas and their load; hosts, domains and GPUs, and who has them.",
    ),
    "move": Place(
        "move",
        "move",
        "Move a replica to better GPUs of its host: its streams finish, its engine starts again there.",
    ),
    "scaling": Place(
        "scaling",
        "scaling",
        "What the autoscaler decides and why, what a shadow would have saved, and which replicas and hosts are idle.",
    ),
    "delete": Place(
        "deploy",
        "delete",
        "Take models off the cluster; running streams finish first. Other applications stay.",
    ),
    "schema": Place("deploy", "schema", "Print the JSON schema of deployment configs, for editors."),
    "topology": Place(
        "topology",
        "topology",
        "Show the GPUs, how they are linked, and which of them belong together.",
    ),
    "plan": Place(
        "plan",
        "plan",
        "Show whether a config fits: memory, context, placement by links, and the most each model can do.",
    ),
    "bench": Place("bench", "bench", "Run every case of a benchmark plan and print the run folder."),
    "report": Place(
        "report",
        "report",
        "Write report.html, report.md and report.csv into each run folder and print the tables.",
    ),
    "calibrate": Place(
        "calibrate",
        "calibrate_command",
        "Fit bandwidth share, compute share and two overheads; judge them on rows that were not fitted.",
    ),
    "profiles": Place(
        "profiles",
        "profiles_command",
        "List the named engine settings, or print one: its settings, its vllm command line and what fits.",
    ),
    "replay": Place(
        "replay",
        "replay_command",
        "Replay load under scaling policies on simulated engines and print what each costs and attains.",
    ),
    "node": Place("node", "node", "Start or stop this host's part of the Ray cluster."),
    "cluster": Place("node", "cluster", "Start, use or stop all hosts of a Ray cluster launcher config."),
    "export": Place("export", "export", "Write a deployment as other tools want it."),
    "engine": Place("engine", "engine", "Build TensorRT-LLM engines."),
}
