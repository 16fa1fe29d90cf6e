"""`raylane plan`: does a deployment fit on its hosts, where do its replicas go, and how fast can they be at most."""

from pathlib import Path
from typing import Annotated

import typer

from raylane.cluster.errors import UsageError
from raylane.cluster.interrupts import ends_at_once


def plan(
    config_file: Annotated[Path | None, typer.Argument(help="Deployment config (YAML).")] = None,
    from_files: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Plan on a recording instead of this host; given again, on all their hosts."),
    ] = None,
    suggest_for: Annotated[
        str | None, typer.Option("--suggest", help="Quantization guide for builtin:..., a folder or a config.json.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="With --suggest: name in the accelerator catalogue, or that of --from.")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option("--max-model-len", min=1, help="With --suggest: tokens of context (4096).")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show whether a config fits: memory, context, placement by links, and the most each model can do."""
    if (config_file is None) == (suggest_for is None):
        raise UsageError("give a deployment config, or --suggest MODEL --gpu NAME")
    with ends_at_once():
        from raylane.autoscaling.live.specs import check_policy
        from raylane.cli.planning import hosts_of, print_plan, print_suggestion
        from raylane.deployments.config.deployment import load_config

    if suggest_for is not None:
        hosts = hosts_of(from_files) if from_files else None
        print_suggestion(suggest_for, gpu, hosts, max_model_len, json_output)
    elif config_file is not None:
        if gpu is not None:
            raise UsageError(f"--gpu {gpu} goes with --suggest; a config is planned on the GPUs of its hosts")
        if max_model_len is not None:
            raise UsageError(f"--max-model-len {max_model_len} goes with --suggest; a config names its own")
        config = load_config(config_file)
        check_policy(config, str(config_file))
        print_plan(config_file, config, hosts_of(from_files), json_output)
