"""The quantization guide: every weight format on 1, 2, 4 and 8 GPUs of a kind, computed. Pure."""

from dataclasses import dataclass

from raylane.cluster.catalog import Accelerator
from raylane.deployments.sizing.fit import EngineSettings, Fits, Refusal, check
from raylane.deployments.sizing.model_facts import ModelFacts
from raylane.deployments.sizing.roofline import Ceiling, Link, ceiling

GPU_COUNTS = (1, 2, 4, 8)
LARGEST_GPU_COUNT = GPU_COUNTS[-1]
DEFAULT_CONTEXT = 4096
LARGEST_BATCH = 64
_EXACTNESS = {
    "none": 0,
    "fp8": 1,
    "int8": 1,
    "awq": 2,
    "gptq": 2,
    "int4": 2,
}  # fewer bits, further from the original; a quantized checkpoint's own format is the only one of its guide


@dataclass(frozen=True)
class Option:
    """One weight format on some GPUs. `ceiling` is of the largest batch that fits, None when nothing fits."""

    format: str
    gpus: int
    fit: Fits | Refusal
    sequences: int
    """Requests of the full context that run at once."""
    ceiling: Ceiling | None


@dataclass(frozen=True)
class Guide:
    """All options and the one to start with; `best` is None when none holds enough sequences."""

    max_model_len: int
    options: tuple[Option, ...]
    best: Option | None
    reason: str


def suggest(
    facts: ModelFacts,
    gpu: Accelerator,
    *,
    max_model_len: int = DEFAULT_CONTEXT,
    sequences: int = 8,
    gpu_memory_utilization: float = 0.9,
    link: Link | None = None,
    largest: int = LARGEST_GPU_COUNT,
    input_tokens: int = 512,
    output_tokens: int = 256,
) -> Guide:
    """Which format to serve a model in, and on how many GPUs.

    Chosen is what needs the fewest GPUs, and among those the format nearest to the original weights, that holds at
    least `sequences` requests of `max_model_len` at once: fewer leave the GPU idle between the reads of its weights.
    `largest` is how many GPUs one host has.
    """
    length = min(max_model_len, facts.max_position_embeddings)
    counts = [count for count in GPU_COUNTS if count <= largest]
    options = []
    for name in _formats(facts, gpu):
        for gpus in counts:
            settings = EngineSettings(
                quantization=None if name == "none" else name,
                max_model_len=length,
                gpu_memory_utilization=gpu_memory_utilization,
                tensor_parallel=gpus,
            )
            option = _option(facts, gpu, settings, link, input_tokens, output_tokens)
            options.append(option)
            if option.sequences >= sequences:
                break
    enough = [option for option in options if option.sequences >= sequences]
    if not enough:
        return Guide(length, tuple(options), None, f"nothing up to {largest} GPUs holds {sequences} sequences")
    best = min(enough, key=lambda option: (option.gpus, _EXACTNESS.get(option.format, 0)))
    reason = (
        f"fewest GPUs ({best.gpus}) that hold at least {sequences} sequences of {length:,} tokens; "
        f"it holds {best.sequences}"
    )
    return Guide(length, tuple(options), best, reason)


def _formats(facts: ModelFacts, gpu: Accelerator) -> tuple[str, ...]:
    """The checkpoint's own format alone when it is quantized already; 8 bits as the card computes them."""
    if facts.quantization is not None:
        return (facts.quantization,)
    return ("none", "fp8" if gpu.fp8_flops else "int8", "awq")


def _option(
    facts: ModelFacts,
    gpu: Accelerator,
    settings: EngineSettings,
    link: Link | None,
    input_tokens: int,
    output_tokens: int,
) -> Option:
    name = settings.quantization or "none"
    found = check(facts, gpu, settings)
    if isinstance(found, Refusal):
        return Option(name, settings.gpus, found, 0, None)
    batch = min(LARGEST_BATCH, found.largest_batch(input_tokens + output_tokens))
    top = ceiling(facts, gpu, settings, batch=batch, input_tokens=input_tokens, output_tokens=output_tokens, link=link)
    return Option(name, settings.gpus, found, found.largest_batch(settings.max_model_len or 1), top)
