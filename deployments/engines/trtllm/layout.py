"""The folder that `raylane engine build` makes: engine, tokenizer, config.json and a record of the build."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.strict import StrictModel

ENGINE = "engine"  # the folder of trtllm-build's output
RECORD = "raylane-engine.json"

Quantization = Literal["fp8", "int8", "int4_awq"]


class BuildRecord(StrictModel):
    """How an engine was built; written beside it."""

    source: str
    quantization: Quantization
    kv_cache_dtype: Literal["fp8"] | None
    tensor_parallel: int
    pipeline_parallel: int
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    prompts: int
    prompts_sha256: str
    gpu: str
    tensorrt_llm: str
    commands: tuple[tuple[str, ...], ...]


def is_built(folder: str) -> bool:
    return (Path(folder) / RECORD).is_file()


def read_record(folder: Path) -> BuildRecord:
    """UsageError when the record is not one."""
    path = folder / RECORD
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    return BuildRecord.from_data(data, str(path))


def check_built(name: str, folder: Path, asked: Mapping[str, Any]) -> None:
    """FailedError when the folder holds no engine, or one that was built for other settings than these."""
    if not is_built(str(folder)):
        raise FailedError(f"model {name}: backend tensorrt, but {folder} is no output of `raylane engine build`")
    built = read_record(folder)
    for key, wanted in asked.items():
        found = getattr(built, key)
        smaller = key.startswith("max_") and wanted is not None and wanted <= found
        if wanted is not None and wanted != found and not smaller:
            raise FailedError(f"model {name}: {key} is {wanted}, and the engine in {folder} was built for {found}")
