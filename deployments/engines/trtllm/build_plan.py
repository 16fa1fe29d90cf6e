"""What `raylane engine build` will do: its two commands and their files, from a request that was checked. Pure
except for reading the source's config.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylane.cluster.errors import UsageError
from raylane.deployments.config.deployment import MODEL_NAME
from raylane.deployments.engines.trtllm.layout import ENGINE, Quantization, is_built
from raylane.deployments.engines.trtllm.names import architectures, quantizable, served_by, version

QFORMATS: Mapping[Quantization, str] = {"fp8": "fp8", "int8": "int8_sq", "int4_awq": "int4_awq"}
AWQ_BLOCK_SIZE = 128
SEED = 1234
DEFAULT_MAX_SEQ_LEN = 8192
DEFAULT_CALIBRATION_TOKENS = 2048
RUNNER = Path(__file__).with_name("run_quantization.py")
# The quantizer takes a folder with one of these words anywhere in its path for that public data set.
PUBLIC_DATASETS = ("cnn_dailymail", "scienceqa", "science_qa")


@dataclass(frozen=True)
class BuildRequest:
    """A model to convert, and the sizes its engine is built for."""

    source: Path
    out: Path
    quantization: Quantization
    kv_cache_fp8: bool = False
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    max_batch_size: int = 256
    max_num_tokens: int = 8192
    max_seq_len: int = DEFAULT_MAX_SEQ_LEN
    calibration_tokens: int = DEFAULT_CALIBRATION_TOKENS
    """Longest part of a prompt that is calibrated on."""
    trust_remote_code: bool = False

    @property
    def ranks(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel


def check_request(request: BuildRequest) -> dict[str, Any]:
    """The source's config.json. UsageError when something is wrong with the request, before anything is done."""
    if request.out.exists():
        raise UsageError(f"--out {request.out}: exists already; an engine is never overwritten")
    if not request.out.parent.is_dir():
        raise UsageError(f"--out {request.out}: no folder {request.out.parent}")
    taken = [word for word in PUBLIC_DATASETS if word in str(request.out.absolute()).lower()]
    if taken:
        raise UsageError(
            f"--out {request.out}: {taken[0]!r} in the path makes TensorRT-LLM calibrate on that data set instead of "
            "your prompts; choose another path"
        )
    if not MODEL_NAME.match(request.out.name):
        raise UsageError(
            f"--out {request.out}: the folder's name becomes the model's: letters, digits, '.', '_' or '-', at most 63"
        )
    if request.kv_cache_fp8 and request.quantization == "int8":
        raise UsageError("--kv-cache-fp8 goes with --quantization fp8 or int4_awq, not with int8")
    if request.max_seq_len < 2:
        raise UsageError(f"--max-seq-len {request.max_seq_len}: a prompt and an output need at least 2 tokens")
    if request.max_batch_size > request.max_num_tokens:
        raise UsageError(
            f"--max-batch-size {request.max_batch_size} is more than --max-num-tokens {request.max_num_tokens}: "
            "a step has no token for each request"
        )
    config = read_config(request.source)
    check_architecture(config, request)
    check_split(config, request)
    positions = plain_positions(config)
    lengths = {"--max-seq-len": request.max_seq_len, "--calibration-tokens": request.calibration_tokens}
    for option, length in lengths.items():
        if positions is not None and length > positions:
            raise UsageError(f"{option} {length}: the model has {positions} positions")
    return config


def check_split(config: Mapping[str, Any], request: BuildRequest) -> None:
    """UsageError where the model cannot be divided over so many GPUs; what config.json does not say is not checked."""
    tp, pp = request.tensor_parallel, request.pipeline_parallel
    counts = (config.get(f"num_{what}") for what in ("attention_heads", "key_value_heads", "hidden_layers"))
    heads, kv_heads, layers = (count if isinstance(count, int) else None for count in counts)
    if heads and heads % tp:
        raise UsageError(f"--tensor-parallel {tp}: the model's {heads} attention heads cannot be split over {tp} GPUs")
    if kv_heads and kv_heads % tp and tp % kv_heads:
        raise UsageError(
            f"--tensor-parallel {tp}: the model's {kv_heads} KV heads can be neither split nor repeated over {tp} GPUs"
        )
    if layers and pp > layers:
        raise UsageError(f"--pipeline-parallel {pp}: the model has {layers} layers")


def plain_positions(config: Mapping[str, Any]) -> int | None:
    """The model's longest context; None where a scaled embedding stretches it or config.json does not say."""
    positions = config.get("max_position_embeddings")
    return positions if isinstance(positions, int) and not config.get("rope_scaling") else None


def read_config(source: Path) -> dict[str, Any]:
    """config.json of a Hugging Face folder."""
    if not source.is_dir():
        raise UsageError(f"{source}: no such folder; SOURCE is a downloaded Hugging Face model")
    if is_built(str(source)):
        raise UsageError(f"{source}: already an engine of `raylane engine build`")
    path = source / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path}: not an object")
    return config


def check_architecture(config: Mapping[str, Any], request: BuildRequest) -> None:
    """UsageError for a model that TensorRT-LLM cannot quantize or build, or that brings code without leave."""
    where = request.source / "config.json"
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise UsageError(f"{where}: architectures: not a list of names (got {named!r})")
    name = named[0]
    if not served_by(name, "tensorrt") or not quantizable(name):
        also = "; backend pytorch serves it without a build" if served_by(name, "pytorch") else ""
        known = ", ".join(item for item in architectures("tensorrt") if quantizable(item))
        raise UsageError(f"{where}: TensorRT-LLM {version()} builds no engine of {name}{also} (it builds {known})")
    if config.get("quantization_config") is not None:
        raise UsageError(f"{where}: quantized already; backend pytorch serves quantized checkpoints without a build")
    if config.get("auto_map") is not None and not request.trust_remote_code:
        raise UsageError(f"{where}: auto_map: the quantizer would run the model's own code; allow --trust-remote-code")


@dataclass(frozen=True)
class Step:
    """One command of a build, what it is for, and what would need less GPU memory."""

    title: str
    command: tuple[str, ...]
    less_memory: str


@dataclass(frozen=True)
class WorkFolder:
    """The files of a build under way, all inside the partial folder."""

    partial: Path

    @property
    def prompts(self) -> Path:
        return self.partial / "prompts.jsonl"

    @property
    def runner(self) -> Path:
        """A copy of run_quantization.py: Python looks for modules beside a script first, and finds none here."""
        return self.partial / RUNNER.name

    @property
    def spec(self) -> Path:
        return self.partial / "quantization.json"

    @property
    def dataset(self) -> Path:
        return self.partial / "calibration"

    @property
    def checkpoint(self) -> Path:
        return self.partial / "checkpoint"

    @property
    def engine(self) -> Path:
        return self.partial / ENGINE

    @property
    def scaffolding(self) -> tuple[Path, ...]:
        """What is removed before the folder is handed over."""
        return (self.runner, self.prompts, self.spec, self.dataset, self.checkpoint)


def quantization_spec(request: BuildRequest, place: WorkFolder, prompts: int) -> dict[str, Any]:
    """What run_quantization.py reads; `arguments` are those of quantize_and_export."""
    return {
        "prompts": str(place.prompts),
        "dataset": str(place.dataset),
        "trust_remote_code": request.trust_remote_code,
        "arguments": {
            "model_dir": str(request.source),
            "device": "cuda",
            "calib_dataset": str(place.dataset),
            "dtype": "auto",
            "qformat": QFORMATS[request.quantization],
            "kv_cache_dtype": "fp8" if request.kv_cache_fp8 else None,
            "calib_size": prompts,
            "batch_size": 1,
            "calib_max_seq_length": request.calibration_tokens,
            "awq_block_size": AWQ_BLOCK_SIZE,
            "output_dir": str(place.checkpoint),
            "tp_size": request.tensor_parallel,
            "pp_size": request.pipeline_parallel,
            "cp_size": 1,
            "seed": SEED,
            "tokenizer_max_seq_length": request.calibration_tokens,
        },
    }


def steps(request: BuildRequest, place: WorkFolder, python: str, trtllm_build: str, gpus: int) -> tuple[Step, ...]:
    """The commands in order. `python` is the one that has TensorRT-LLM, `gpus` how many may build at once."""
    build = (
        *(trtllm_build, "--checkpoint_dir", str(place.checkpoint), "--output_dir", str(place.engine)),
        *("--max_batch_size", str(request.max_batch_size), "--max_num_tokens", str(request.max_num_tokens)),
        *("--max_seq_len", str(request.max_seq_len), "--max_input_len", str(request.max_seq_len - 1)),
        *("--workers", str(max(1, min(request.ranks, gpus)))),
    )
    return (
        Step(
            "calibrate and quantize",
            (python, str(place.runner), str(place.spec)),
            "the unquantized model is on the GPUs: free them, use more, or lower --calibration-tokens",
        ),
        Step("build the engine", build, "lower --max-batch-size, --max-num-tokens or --max-seq-len, or use more GPUs"),
    )
