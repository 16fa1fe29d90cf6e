"""The commands by name: where each is, and what `raylane --help` says of it without importing it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandPlace:
    """A command, or a group of commands, and the first line of its help."""

    module: str  # of raylane.cli
    name: str
    help: str


COMMANDS = {
    "demo": CommandPlace(
        "demo",
        "demo",
        "Serve two models on this machine, load both at once, and report speed and cost.",
    ),
    "deploy": CommandPlace(
        "deploy",
        "deploy",
        "Put models on the running cluster; an edit restarts only the models whose own block changed.",
    ),
    "status": CommandPlace(
        "status",
        "status",
        "What is deployed: models, replicas and their load; hosts, domains and GPUs, and who has them.",
    ),
    "move": CommandPlace(
        "move",
        "move",
        "Move a replica to better GPUs of its host: its streams finish, its engine starts again there.",
    ),
    "scaling": CommandPlace(
        "scaling",
        "scaling",
        "What the autoscaler decides and why, what a shadow would have saved, and which replicas and hosts are idle.",
    ),
    "delete": CommandPlace(
        "deploy",
        "delete",
        "Take models off the cluster; running streams finish first. Other applications stay.",
    ),
    "schema": CommandPlace("deploy", "schema", "Print the JSON schema of deployment configs, for editors."),
    "topology": CommandPlace(
        "topology",
        "topology",
        "Show the GPUs, how they are linked, and which of them belong together.",
    ),
    "plan": CommandPlace(
        "plan",
        "plan",
        "Show whether a config fits: memory, context, placement by links, and the most each model can do.",
    ),
    "bench": CommandPlace("bench", "bench", "Run every case of a benchmark plan and print the run folder."),
    "report": CommandPlace(
        "report",
        "report",
        "Write report.html, report.md and report.csv into each run folder and print the tables.",
    ),
    "calibrate": CommandPlace(
        "calibrate",
        "calibrate_command",
        "Fit bandwidth share, compute share and two overheads; judge them on rows that were not fitted.",
    ),
    "profiles": CommandPlace(
        "profiles",
        "profiles_command",
        "List the named engine settings, or print one: its settings, its vllm command line and what fits.",
    ),
    "replay": CommandPlace(
        "replay",
        "replay_command",
        "Replay load under scaling policies on simulated engines and print what each costs and attains.",
    ),
    "node": CommandPlace("node", "node", "Start or stop this host's part of the Ray cluster."),
    "cluster": CommandPlace("node", "cluster", "Start, use or stop all hosts of a Ray cluster launcher config."),
    "export": CommandPlace("export", "export", "Write a deployment as other tools want it."),
    "engine": CommandPlace("engine", "engine", "Build TensorRT-LLM engines."),
}
