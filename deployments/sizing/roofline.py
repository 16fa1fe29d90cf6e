"""The fastest a model can run on its GPUs: what memory bandwidth, arithmetic and links allow. Pure.

Nothing here is a prediction: a real engine is slower. A claim above these figures is impossible for one token a step
and sequence (speculative decoding is left out) and, over several GPUs, on links no faster than the one assumed.
"""

from dataclasses import dataclass

from raylane.cluster.catalog import Accelerator
from raylane.cluster.links import NVLINK_BYTES_PER_S
from raylane.deployments.sizing.kv_layout import on_one_gpu, read_bytes
from raylane.deployments.sizing.memory import EngineSettings
from raylane.deployments.sizing.model_facts import ModelFacts
from raylane.deployments.sizing.weights import kv_element_bytes, peak_flops, weights_read_bytes

ACTIVATION_BYTES = 2  # partial sums travel in 16 bits
ALL_REDUCES_PER_LAYER = 2  # one after attention, one after the MLP
# 393 GB/s were measured between two H200 whose NVLink is sold as 900 GB/s (both directions together).
NVLINK_SHARE = 393 / 900


@dataclass(frozen=True)
class Link:
    """The connection between the GPUs of one replica."""

    bytes_per_s: float
    latency_s: float
    source: str


def assumed_link(gpu: Accelerator, nvlinks: int | None = None) -> Link:
    """What to expect of a card's link before it has been measured.

    `nvlinks` NVLink links are known to join the GPUs (a bridge): they count where the catalogue knows the card without.
    """
    if gpu.nvlink_bytes_per_s is None and nvlinks:
        speed = nvlinks * NVLINK_BYTES_PER_S
        return Link(speed, 8e-6, f"assumed: {nvlinks} NVLink links by label, {speed / 1e9:.0f} GB/s, 8 us")
    if gpu.nvlink_bytes_per_s is not None:
        return Link(gpu.nvlink_bytes_per_s * NVLINK_SHARE, 8e-6, "assumed: NVLink, 44 % of its label, 8 us")
    return Link(20e9, 25e-6, f"assumed: {gpu.interconnect}, 20 GB/s, 25 us")


def all_reduce_s(facts: ModelFacts, tensor_parallel: int, tokens: int, link: Link | None) -> float:
    """Time all GPUs of a replica spend adding up partial results in one step over `tokens` tokens.

    2 per layer, each latency + 2 (tp - 1) / tp x bytes / link speed (a ring). Nothing for one GPU, or for `link` None.
    """
    if tensor_parallel == 1 or link is None:
        return 0.0
    size = tokens * facts.hidden_size * ACTIVATION_BYTES
    share = 2 * (tensor_parallel - 1) / tensor_parallel
    return ALL_REDUCES_PER_LAYER * facts.layers * (link.latency_s + share * size / link.bytes_per_s)


def stage_hops_s(facts: ModelFacts, pipeline_parallel: int, tokens: int, link: Link | None) -> float:
    """Time to hand `tokens` activations from each pipeline stage to the next."""
    if link is None:
        return 0.0
    size = tokens * facts.hidden_size * ACTIVATION_BYTES
    return (pipeline_parallel - 1) * (link.latency_s + size / link.bytes_per_s)


def decode_floor_s(
    facts: ModelFacts, gpu: Accelerator, settings: EngineSettings, batch: int, context_tokens: float, link: Link | None
) -> float:
    """Shortest time in which each of `batch` sequences of `context_tokens` gets one more token.

    max((weights read / TP + KV read of a GPU) / bandwidth, arithmetic) + all-reduce. With pipeline stages every stage
    reads its layers once for each of the micro-batches in flight, so weights are not read faster, only KV is.
    """
    tp, pp = settings.tensor_parallel, settings.pipeline_parallel
    micro = -(-batch // pp)
    weights = weights_read_bytes(facts, micro, settings.quantization, settings.dtype)
    element = kv_element_bytes(settings.kv_cache_dtype, settings.dtype, facts)
    kv = micro * read_bytes(on_one_gpu(facts.kv_layers, element, tp, 1), context_tokens)
    memory_s = (weights / tp + kv) / gpu.bandwidth_bytes_per_s
    matrices = facts.active_linear_parameters + facts.head_parameters
    compute_s = 2 * matrices * micro / (peak_flops(gpu, settings.quantization, settings.dtype, facts) * tp)
    return max(memory_s, compute_s) + all_reduce_s(facts, tp, micro, link) + stage_hops_s(facts, pp, micro, link)


def prefill_floor_s(
    facts: ModelFacts, gpu: Accelerator, settings: EngineSettings, tokens: int, link: Link | None
) -> float:
    """Shortest time to process a prompt of `tokens` alone: max(2 x parameters x tokens / (FLOPS x TP), weights read).

    The parameters are those a prompt token is multiplied with: no input table, and the head only for the last token.
    A lone prompt passes the pipeline stages one after the other, so they do not shorten it.
    """
    tp = settings.tensor_parallel
    weights = weights_read_bytes(facts, tokens, settings.quantization, settings.dtype)
    memory_s = weights / (gpu.bandwidth_bytes_per_s * tp)
    compute_s = prefill_compute_s(facts, gpu, settings, tokens)
    hops_s = stage_hops_s(facts, settings.pipeline_parallel, tokens, link)
    return max(compute_s, memory_s) + all_reduce_s(facts, tp, tokens, link) + hops_s


def prefill_compute_s(facts: ModelFacts, gpu: Accelerator, settings: EngineSettings, tokens: int) -> float:
    """Arithmetic alone of `tokens` prompt tokens, without attention's own (small under 8 k tokens)."""
    flops = peak_flops(gpu, settings.quantization, settings.dtype, facts) * settings.tensor_parallel
    return 2 * facts.active_linear_parameters * tokens / flops


@dataclass(frozen=True)
class Ceiling:
    """The most one replica can do with requests of one size, all slots busy. A bound, not a forecast."""

    batch: int
    input_tokens: int
    output_tokens: int
    decode_step_s: float
    """Time per output token of each stream while no prompt is in the way."""
    prefill_s: float
    output_tokens_per_s: float
    requests_per_s: float
    output_tokens_per_joule: float | None
    """At this rate with every card drawing its TDP; cards that draw less yield more. None: power not published."""


def ceiling(
    facts: ModelFacts,
    gpu: Accelerator,
    settings: EngineSettings,
    *,
    batch: int,
    input_tokens: int,
    output_tokens: int,
    link: Link | None = None,
) -> Ceiling:
    """Highest output rate: in the time of `output_tokens` decode steps every slot's prompt must be processed too.

    rate = batch x output / (output x decode step at the mean context + batch x prefill). The mean context is
    input + output / 2. Prompts run beside decoding, so they cost arithmetic and links but no reading of weights;
    pipeline stages work on several prompts at once.
    """
    step_s = decode_floor_s(facts, gpu, settings, batch, input_tokens + output_tokens / 2, link)
    busy_s = prefill_compute_s(facts, gpu, settings, input_tokens) / settings.pipeline_parallel
    busy_s += all_reduce_s(facts, settings.tensor_parallel, input_tokens, link) / settings.pipeline_parallel
    rate = batch / (output_tokens * step_s + batch * busy_s)
    power_w = None if gpu.tdp_w is None else gpu.tdp_w * settings.gpus
    return Ceiling(
        batch=batch,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        decode_step_s=step_s,
        prefill_s=prefill_floor_s(facts, gpu, settings, input_tokens, link),
        output_tokens_per_s=rate * output_tokens,
        requests_per_s=rate,
        output_tokens_per_joule=None if power_w is None else rate * output_tokens / power_w,
    )
