"""Runs a build: checks the host, works in a partial folder, and hands it over under its name or removes it."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from raylane.cluster.catalog import find_accelerator
from raylane.cluster.errors import FailedError
from raylane.cluster.hosts import Gpu
from raylane.cluster.nvml import read_host
from raylane.cluster.processes import end_processes_with
from raylane.cluster.recording import TOPOLOGY_VARIABLE, recording_in_use
from raylane.deployments.engines.process import log_tail
from raylane.deployments.engines.trtllm.build_plan import (
    RUNNER,
    BuildRequest,
    Step,
    WorkFolder,
    check_request,
    quantization_spec,
    steps,
)
from raylane.deployments.engines.trtllm.failures import explain_failure
from raylane.deployments.engines.trtllm.layout import RECORD, BuildRecord
from raylane.deployments.engines.trtllm.names import version
from raylane.deployments.engines.trtllm.programs import interpreter
from raylane.deployments.engines.trtllm.prompts import Prompts

MARK = "RAYLANE_BUILD_OF"  # in the environment of every process of a build
PROGRAM = "trtllm-build"
STOP_GRACE_S = 5.0
VERSION_TIMEOUT_S = 60.0
KEPT = (
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab*", "merges.txt", "*.model", "chat_template*"),
)


@dataclass(frozen=True)
class Toolchain:
    """What a host has for building engines."""

    trtllm_build: str
    python: str  # the interpreter that trtllm-build runs in
    tensorrt_llm: str  # its version
    gpus: tuple[str, ...]  # names of the GPUs


def read_gpus() -> Sequence[Gpu]:
    return read_host().gpus


def find_toolchain(request: BuildRequest, gpus_here: Callable[[], Sequence[Gpu]] | None = None) -> Toolchain:
    """FailedError, before anything is done, on a host without GPUs or TensorRT-LLM, or whose GPUs have no FP8."""
    recording = recording_in_use()
    if recording is not None:
        raise FailedError(f"engines are built on real GPUs, but {TOPOLOGY_VARIABLE}={recording} makes them simulated")
    gpus = tuple(gpu.name for gpu in (gpus_here or read_gpus)())
    if not gpus:
        raise FailedError("engines are built on a GPU of the kind that will serve them, and this host has none")
    found = shutil.which(PROGRAM)
    if found is None:
        raise FailedError(f"TensorRT-LLM {version()} is not installed: {PROGRAM} is not on PATH (docs/engines.md)")
    card = find_accelerator(gpus[0])
    if (request.quantization == "fp8" or request.kv_cache_fp8) and card is not None and card.fp8_flops is None:
        raise FailedError(f"{gpus[0]} has no FP8 arithmetic: choose --quantization int8 or int4_awq, and no FP8 KV")
    python = interpreter(Path(found))
    return Toolchain(found, python, installed_version(python), gpus)


def installed_version(python: str) -> str:
    """TensorRT-LLM's version in an interpreter. FailedError when it has none."""
    code = "import importlib.metadata as m; print(m.version('tensorrt_llm'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise FailedError(f"{python} has no package tensorrt_llm, and {PROGRAM} needs it")
    return done.stdout.strip()


def planned(request: BuildRequest, tools: Toolchain | None) -> tuple[Step, ...]:
    """The commands of a build as they would be run; names stand for tools that are not known."""
    place = WorkFolder(request.out.with_name(f".{request.out.name}.partial"))
    if tools is None:
        return steps(request, place, "python", PROGRAM, request.ranks)
    return steps(request, place, tools.python, tools.trtllm_build, len(tools.gpus))


def build(request: BuildRequest, prompts: Prompts, tools: Toolchain, say: Callable[[str], None]) -> Path:
    """Make the engine; its folder. FailedError, with nothing but the log left, when a step fails."""
    check_request(request)
    log = request.out.with_name(f"{request.out.name}.build.log")
    partial = Path(tempfile.mkdtemp(prefix=f".{request.out.name}.partial-", dir=request.out.parent))
    place = WorkFolder(partial)
    try:
        _write_inputs(request, place, prompts)
        commands = steps(request, place, tools.python, tools.trtllm_build, len(tools.gpus))
        with log.open("wb") as output:
            for step in commands:
                say(f"{step.title}: log {log}")
                run_step(step, output.fileno(), log, partial)
        _check_engine(request, place, log)
        _finish(request, place, prompts, tools, commands)
        _hand_over(partial, request.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # after the renaming there is nothing to remove
    return request.out


def run_step(step: Step, output_fd: int, log: Path, folder: Path) -> None:
    """Run a command in a folder. FailedError with the reason when it fails; leaves no process."""
    token = uuid.uuid4().hex
    process = subprocess.Popen(
        step.command,
        stdin=subprocess.DEVNULL,
        stdout=output_fd,
        stderr=subprocess.STDOUT,
        env={**os.environ, MARK: token},
        cwd=folder,
        start_new_session=True,
    )
    try:
        code = process.wait()
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_GRACE_S)
        end_processes_with(MARK, token, 0.0)
        process.wait()
    if code != 0:
        reason = explain_failure(code, log_tail(log, 400), step.less_memory)
        raise FailedError(f"{step.title}: {reason}; log {log}:\n{log_tail(log)}")


def _write_inputs(request: BuildRequest, place: WorkFolder, prompts: Prompts) -> None:
    lines = [json.dumps(row) + "\n" for row in prompts.rows]
    place.prompts.write_text("".join(lines), encoding="utf-8")
    shutil.copyfile(RUNNER, place.runner)
    spec = quantization_spec(request, place, len(prompts.rows))
    place.spec.write_text(json.dumps(spec, indent=1), encoding="utf-8")


def _check_engine(request: BuildRequest, place: WorkFolder, log: Path) -> None:
    engines = [place.engine / f"rank{rank}.engine" for rank in range(request.ranks)]
    missing = [path.name for path in [place.engine / "config.json", *engines] if not path.is_file()]
    if missing:
        raise FailedError(f"{PROGRAM} ended well but did not write {', '.join(missing)}; log {log}:\n{log_tail(log)}")


def _finish(
    request: BuildRequest, place: WorkFolder, prompts: Prompts, tools: Toolchain, commands: Sequence[Step]
) -> None:
    patterns = (*KEPT, "*.py") if request.trust_remote_code else KEPT
    for path in sorted({path for pattern in patterns for path in request.source.glob(pattern) if path.is_file()}):
        shutil.copy2(path, place.partial / path.name)
    record = BuildRecord(
        source=str(request.source),
        quantization=request.quantization,
        kv_cache_dtype="fp8" if request.kv_cache_fp8 else None,
        tensor_parallel=request.tensor_parallel,
        pipeline_parallel=request.pipeline_parallel,
        max_batch_size=request.max_batch_size,
        max_num_tokens=request.max_num_tokens,
        max_seq_len=request.max_seq_len,
        prompts=len(prompts.rows),
        prompts_sha256=prompts.sha256,
        gpu=tools.gpus[0],
        tensorrt_llm=tools.tensorrt_llm,
        commands=tuple(step.command for step in commands),
    )
    (place.partial / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    for path in place.scaffolding:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _hand_over(partial: Path, out: Path) -> None:
    partial.chmod(0o755)  # mkdtemp's folder is for its owner alone
    try:
        partial.rename(out)
    except OSError as error:
        raise FailedError(f"{partial} cannot become {out}: {error.strerror}") from error
