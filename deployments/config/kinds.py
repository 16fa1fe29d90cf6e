"""The engine kinds: one line each, and what the config of every kind answers.

A kind is a folder of engines/. Its config.py has the block of a deployment config, called `Block`; its engine.py has
the rest, called `KIND` (engines/base.py). Both are imported on first use: a config imports no engine by itself.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal, Self

from raylane.cluster.strict import StrictModel

KINDS: Mapping[str, str] = {  # the kind's name in a config -> its folder
    "vllm": "raylane.deployments.engines.vllm",
    "simulator": "raylane.deployments.engines.simulator",
    "tensorrt-llm": "raylane.deployments.engines.trtllm",
    "sglang": "raylane.deployments.engines.sglang",
}
DEFAULT_KIND = "vllm"


@dataclass(frozen=True)
class EngineSizes:
    """What of an engine's settings decides memory and speed, in sizing's words. None: the engine's own default."""

    dtype: str
    quantization: str | None
    kv_cache_dtype: str | None
    max_model_len: int | None  # longest prompt plus output, in tokens
    max_num_seqs: int | None  # largest batch
    max_num_batched_tokens: int | None  # tokens a step
    memory_of_card: float  # share of the card's memory that the engine may take for all it holds
    kv_of_rest: float = 1.0  # share of what weights and buffers leave of that, for KV
    prefix_caching: bool | None = None
    kv_windows: bool = True  # whether layers with a window keep only that
    speculative: Mapping[str, Any] | None = None  # vLLM's speculative config: what a draft model adds


class EngineBlock(StrictModel):
    """The `engine` block of a model, whichever kind it is."""

    kind: str
    device: Literal["cuda", "cpu"]
    start_timeout_s: float

    @abstractmethod
    def sizes(self) -> EngineSizes:
        """What sizing, plans and the simulator need of this block."""

    def with_folders(self, absolute: Callable[[str, str], str]) -> Self:
        """The block with the folders that it names made absolute, each by `absolute(key, folder)`; most name none."""
        return self


@cache
def block_class(kind: str) -> type[EngineBlock]:
    """The config block of a kind of KINDS."""
    found = import_module(f"{KINDS[kind]}.config").Block
    if not (isinstance(found, type) and issubclass(found, EngineBlock)):
        raise TypeError(f"{KINDS[kind]}.config.Block is no EngineBlock")
    return found
