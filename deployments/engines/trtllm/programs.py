"""TensorRT-LLM's commands on this host, and the Python that they run in."""

import shutil
from pathlib import Path

from raylane.cluster.errors import FailedError
from raylane.deployments.engines.trtllm.names import version

SERVE = "trtllm-serve"


def program(name: str) -> str:
    """Path of trtllm-serve, for the model of this name. FailedError when this host has none."""
    found = shutil.which(SERVE)
    if found is None:
        raise FailedError(
            f"model {name}: engine.kind tensorrt-llm needs TensorRT-LLM {version()}, but {SERVE} is not on this "
            "host's PATH: install it there (docs/engines.md), or use engine.kind vllm"
        )
    return found


def interpreter(script: Path) -> str:
    """The Python of an installed script, out of its first line. FailedError when there is none."""
    with script.open("rb") as file:
        first = file.readline().decode(errors="replace").strip()
    python = first.removeprefix("#!").split(" ")[0].strip()
    if not first.startswith("#!") or not Path(python).is_file() or "python" not in Path(python).name:
        raise FailedError(f"{script}: its first line names no Python interpreter (got {first[:80]!r})")
    return python
