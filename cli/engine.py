"""`raylane engine`: engines that are built before they are served."""

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from raylane.cluster.errors import FailedError
from raylane.deployments.engines.trtllm.build import Toolchain, find_toolchain, planned
from raylane.deployments.engines.trtllm.build import build as run_build
from raylane.deployments.engines.trtllm.build_plan import (
    DEFAULT_CALIBRATION_TOKENS,
    DEFAULT_MAX_SEQ_LEN,
    BuildRequest,
    Step,
    check_request,
    plain_positions,
    read_config,
)
from raylane.deployments.engines.trtllm.layout import Quantization
from raylane.deployments.engines.trtllm.names import version
from raylane.deployments.engines.trtllm.prompts import Prompts, read_prompts

engine = typer.Typer(no_args_is_help=True, help="Build TensorRT-LLM engines.")


@engine.callback()
def engines() -> None:
    """Build TensorRT-LLM engines."""


@engine.command()
def build(
    source: Annotated[Path, typer.Argument(help="Folder of a Hugging Face model that is not quantized.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make; it must not exist.")],
    quantization: Annotated[
        Quantization,
        typer.Option(help="fp8: nearly no loss, needs FP8 cards; int8: SmoothQuant; int4_awq: smallest, most loss."),
    ],
    prompts: Annotated[Path, typer.Option(help="JSONL of production prompts to calibrate on: prompt or messages.")],
    kv_cache_fp8: Annotated[bool, typer.Option("--kv-cache-fp8", help="KV cache in FP8: twice the context.")] = False,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs that share every layer; fixed in it.")] = 1,
    pipeline_parallel: Annotated[int, typer.Option(min=1, help="Groups that split the layers; fixed in it.")] = 1,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Largest batch; more takes GPU memory.")] = 256,
    max_num_tokens: Annotated[int, typer.Option(min=1, help="Tokens a step; more takes GPU memory.")] = 8192,
    max_seq_len: Annotated[
        int | None, typer.Option(min=2, help="Longest prompt plus output; fixed in it. Default: the model's, or 8192.")
    ] = None,
    calibration_tokens: Annotated[
        int | None,
        typer.Option(min=16, help="Longest part of a prompt to calibrate on. Default: the model's, or 2048."),
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code of the model.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print the commands only.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Quantize a model for TensorRT-LLM, calibrated on your prompts, and build its engine for this kind of GPU."""
    positions = plain_positions(read_config(source))
    request = BuildRequest(
        source.absolute(),
        out.absolute(),
        quantization,
        kv_cache_fp8=kv_cache_fp8,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        max_batch_size=max_batch_size,
        max_num_tokens=max_num_tokens,
        max_seq_len=max_seq_len or min(DEFAULT_MAX_SEQ_LEN, positions or DEFAULT_MAX_SEQ_LEN),
        calibration_tokens=calibration_tokens
        or min(DEFAULT_CALIBRATION_TOKENS, positions or DEFAULT_CALIBRATION_TOKENS),
        trust_remote_code=trust_remote_code,
    )
    check_request(request)
    given = read_prompts(prompts)
    console = Console(stderr=True)
    if given.warning:
        console.print(f"{prompts}: {given.warning}", style="yellow", highlight=False, soft_wrap=True)
    if dry_run:
        typer.echo(plan_text(request, given, json_output))
        return
    tools = find_toolchain(request)
    if not tools.tensorrt_llm.startswith(version().rpartition(".")[0] + "."):
        console.print(f"written against TensorRT-LLM {version()}, found {tools.tensorrt_llm}", style="yellow")
    made = run_build(request, given, tools, lambda line: console.print(line, highlight=False, soft_wrap=True))
    block = config_block(request)
    typer.echo(json.dumps({"engine": str(made), "config": block}) if json_output else yaml_text(block))


def plan_text(request: BuildRequest, prompts: Prompts, json_output: bool) -> str:
    """The plan of a build, with what this host lacks for it."""
    tools: Toolchain | None = None
    missing: str | None = None
    try:
        tools = find_toolchain(request)
    except FailedError as error:
        missing = str(error)
    commands = planned(request, tools)
    if json_output:
        return json.dumps(plan_data(request, prompts, commands, missing), indent=2)
    lines = [
        f"{request.source} -> {request.out}: {request.quantization}, TP={request.tensor_parallel}, "
        f"PP={request.pipeline_parallel}, "
        f"{request.max_seq_len:,} tokens at most",
        f"prompts: {len(prompts.rows)} of {prompts.distinct} distinct ({prompts.lines} lines)",
        *(f"{step.title}: {shlex.join(step.command)}" for step in commands),
    ]
    return "\n".join([*lines, f"not possible here: {missing}"] if missing else lines)


def plan_data(
    request: BuildRequest, prompts: Prompts, commands: tuple[Step, ...], missing: str | None
) -> dict[str, Any]:
    return {
        "source": str(request.source),
        "out": str(request.out),
        "prompts": {"used": len(prompts.rows), "distinct": prompts.distinct, "lines": prompts.lines},
        "steps": [{"title": step.title, "command": list(step.command)} for step in commands],
        "missing": missing,
    }


def config_block(request: BuildRequest) -> dict[str, Any]:
    """The model of a deployment config that serves the engine."""
    block: dict[str, Any] = {
        "source": str(request.out),
        "engine": {
            "kind": "tensorrt-llm",
            "backend": "tensorrt",
            "quantization": request.quantization,
            "max_seq_len": request.max_seq_len,
            "max_batch_size": request.max_batch_size,
            "max_num_tokens": request.max_num_tokens,
        },
    }
    if request.kv_cache_fp8:
        block["engine"]["kv_cache_dtype"] = "fp8"
    if request.tensor_parallel > 1:
        block["tensor_parallel"] = request.tensor_parallel
    if request.pipeline_parallel > 1:
        block["pipeline_parallel"] = request.pipeline_parallel
    return {request.out.name: block}


def yaml_text(block: dict[str, Any]) -> str:
    return yaml.safe_dump({"models": block}, sort_keys=False).rstrip()
