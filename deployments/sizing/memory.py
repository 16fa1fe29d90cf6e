"""What a model takes of its GPUs' memory with given engine settings, and the room left for context. Pure."""

from dataclasses import dataclass, replace
from enum import StrEnum

from raylane.cluster.catalog import Accelerator
from raylane.deployments.sizing.kv_layout import KvLayout, kv_layout, merged, on_one_gpu
from raylane.deployments.sizing.model_facts import ModelFacts
from raylane.deployments.sizing.quantization.kv_cache import AUTO
from raylane.deployments.sizing.quantization.linears import EXPERT
from raylane.deployments.sizing.quantization.splits import broken_groups, broken_split
from raylane.deployments.sizing.weights import (
    head_bytes,
    input_table_bytes,
    kv_element_bytes,
    replicated_bytes,
    stored_as,
    weight_bytes,
    weight_format,
)

GIB = 2**30
# What an engine takes beside weights and KV cache: the CUDA context, allocator slack and captured graphs, and with
# several GPUs the communicator's buffers. Chosen so that the tokens left for 70B on L40S come out as known: about
# 31 k in FP8 and 130 k in INT4 over two cards, 12 to 14 k in AWQ on one.
CONTEXT_BYTES = 0.9e9
COMMUNICATION_BYTES = 0.6e9
LOGITS_BYTES = 12  # per sequence and vocabulary entry: 32-bit logits and two copies while sampling


@dataclass(frozen=True)
class EngineSettings:
    """The engine's settings that decide memory and speed; names and meanings are vLLM's. None leaves its default."""

    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    kv_cache_free_fraction: float = 1.0
    """Share for KV of what weights and workspace leave (TensorRT-LLM's setting); vLLM takes all of it."""
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    draft: ModelFacts | None = None
    """The draft model of speculative decoding, which takes memory of its own; see `drafts`."""
    speculative_tokens: int = 0
    """Tokens guessed ahead for each request; all of them need logits at once."""
    kv_windows: bool = True
    """Layers that see a window keep only that of a request, as vLLM has it by itself."""

    @property
    def gpus(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel


class Limit(StrEnum):
    """What a refused deployment ran into."""

    WEIGHTS = "weights"
    CONTEXT = "context"
    SPLIT = "split"
    SETTINGS = "settings"


@dataclass(frozen=True)
class Fits:
    """A deployment that can start. Bytes are of the fullest GPU; tokens are of the whole replica."""

    settings: EngineSettings
    """As given, with the engine's defaults filled in."""
    gpu: Accelerator
    usable_bytes: float
    weight_bytes: float
    workspace_bytes: float
    kv_bytes: float
    kv_bytes_per_token: float
    """Of the fullest GPU, in requests of max_model_len."""
    kv_tokens: int
    """Tokens of context all running requests may hold together, in requests of max_model_len."""
    kv_blocks: int
    layout: KvLayout

    def largest_batch(self, context_tokens: int) -> int:
        """Sequences of `context_tokens` (prompt and output) that run at once: by KV cache and by max_num_seqs."""
        by_memory = self.kv_blocks // self.layout.blocks_of(context_tokens)
        return min(by_memory, self.settings.max_num_seqs or by_memory)

    def longest_request(self, at_most: int) -> int:
        """The longest max_model_len, up to `at_most`, that an engine starts with. vLLM keeps one block for itself."""
        return self.layout.longest(self.kv_blocks - 1, at_most)


@dataclass(frozen=True)
class Alternative:
    """Settings near refused ones that fit, and what changed."""

    change: str
    fits: Fits


@dataclass(frozen=True)
class Refusal:
    """A deployment that cannot start: why, and up to three of the nearest settings that can."""

    reason: str
    limit: Limit
    nearest: tuple[Alternative, ...] = ()


def check(facts: ModelFacts, gpu: Accelerator, settings: EngineSettings) -> Fits | Refusal:
    """Room left for context, or why there is not enough; `fit` adds the nearest settings that would do."""
    full = with_defaults(facts, gpu, settings)
    broken = _broken_settings(facts, full) or _broken_split(facts, full)
    if broken is not None:
        return broken
    usable = gpu.memory_bytes * full.gpu_memory_utilization
    weights = stage_weight_bytes(facts, full) + draft_weight_bytes(full)
    workspace = workspace_bytes(facts, full)
    layout = stage_kv_layout(facts, full)
    left = (usable - weights - workspace) * full.kv_cache_free_fraction
    blocks = int(max(0.0, left) // layout.block_bytes)
    of_what = "weights (draft model included)" if full.draft else "weights"
    what = f"{weights / 1e9:.1f} GB of {of_what} and {workspace / 1e9:.1f} GB of workspace per GPU"
    room = f"{usable / 1e9:.1f} GB ({full.gpu_memory_utilization:.0%} of {gpu.name}'s {gpu.memory_bytes / 1e9:.1f} GB)"
    if left <= 0:
        return Refusal(f"{what} do not fit in {room}", Limit.WEIGHTS)
    wanted = full.max_model_len or facts.max_position_embeddings
    of_a_request = layout.blocks_of(wanted)
    if blocks - 1 < of_a_request:
        tokens = layout.longest(blocks - 1, wanted)
        return Refusal(
            f"{what} leave room for {tokens:,} tokens of context in {room}; max_model_len is {wanted:,}", Limit.CONTEXT
        )
    per_token = layout.block_bytes * of_a_request / wanted
    tokens = layout.tokens(blocks, wanted)
    return Fits(full, gpu, usable, weights, workspace, left, per_token, tokens, blocks, layout)


def doubts(facts: ModelFacts, settings: EngineSettings) -> tuple[str, ...]:
    """What makes a size doubtful, whether it fits or not: what is left out, overstated or assumed."""
    draft = settings.draft.notes if settings.draft else ()
    mixed = len({each.window for each in facts.kv_layers}) > 1
    full = ("layers with a sliding window are counted as full ones: a refusal may be too strict",)
    return (*facts.notes, *(full if mixed and not settings.kv_windows else ()), *draft)


def with_defaults(facts: ModelFacts, gpu: Accelerator, settings: EngineSettings) -> EngineSettings:
    """Fill in what vLLM 0.29's server takes by itself (vllm/engine/arg_utils.py), and what the checkpoint says."""
    if gpu.memory_bytes >= 160 * GIB:
        tokens, seqs = 16384, 1024
    elif gpu.memory_bytes >= 70 * GIB and "a100" not in gpu.name.casefold():
        tokens, seqs = 8192, 1024
    else:
        tokens, seqs = 2048, 256
    return replace(
        settings,
        quantization=settings.quantization or facts.quantization,
        kv_cache_dtype=facts.kv_cache_dtype if settings.kv_cache_dtype == AUTO else settings.kv_cache_dtype,
        max_model_len=settings.max_model_len or facts.max_position_embeddings,
        max_num_seqs=settings.max_num_seqs or min(seqs, settings.max_num_batched_tokens or seqs),
        max_num_batched_tokens=settings.max_num_batched_tokens or max(tokens, settings.max_num_seqs or 0),
    )


def stage_weight_bytes(facts: ModelFacts, settings: EngineSettings) -> float:
    """Weights of the fullest GPU.

    Tensor parallelism splits both tables and every matrix, but for those that lead into a latent cache; pipeline
    parallelism gives whole layers to each stage, the tables to the first and the last one.
    """
    total = weight_bytes(facts, settings.quantization, settings.dtype)
    whole = replicated_bytes(facts, settings.quantization, settings.dtype)
    if settings.pipeline_parallel == 1:
        return (total - whole) / settings.tensor_parallel + whole
    table = input_table_bytes(facts, settings.quantization, settings.dtype)
    head = head_bytes(facts, settings.quantization, settings.dtype)
    share = -(-facts.layers // settings.pipeline_parallel) / facts.layers
    return ((total - table - head - whole) * share + max(table, head)) / settings.tensor_parallel + whole * share


def draft_weight_bytes(settings: EngineSettings) -> float:
    """Weights of the draft model per GPU; vLLM splits it over as many GPUs as the target.

    They are in its checkpoint's own format. It is not split into pipeline stages: the fullest GPU holds it all.
    """
    if settings.draft is None:
        return 0.0
    return stage_weight_bytes(settings.draft, replace(settings, pipeline_parallel=1, quantization=None, draft=None))


def stage_kv_layout(facts: ModelFacts, settings: EngineSettings) -> KvLayout:
    """KV cache of the fullest GPU, the draft model's included, which is not split into pipeline stages."""
    kinds = []
    for model, stages in ((facts, settings.pipeline_parallel), (settings.draft, 1)):
        if model is not None:
            element = kv_element_bytes(settings.kv_cache_dtype, settings.dtype, model)
            windows = settings.kv_windows
            kinds += on_one_gpu(model.kv_layers, element, settings.tensor_parallel, stages, windows=windows)
    # Tokens of the steps in flight: the next one is scheduled while one runs, and each pipeline stage has its own.
    return kv_layout(merged(kinds), (settings.pipeline_parallel + 1) * (settings.max_num_batched_tokens or 0))


def workspace_bytes(facts: ModelFacts, settings: EngineSettings) -> float:
    """What a GPU needs beside weights and KV cache: context, activations of the largest step, logits, communicator.

    Activations hold the residual stream twice and the MLP's gate, up and product at once, in 16 bits.
    """
    per_token = 2 * (2 * facts.hidden_size + 3 * facts.intermediate_size / settings.tensor_parallel)
    activations = (settings.max_num_batched_tokens or 0) * per_token
    rows = (settings.max_num_seqs or 0) * (1 + settings.speculative_tokens)
    logits = rows * facts.vocab_size * LOGITS_BYTES
    return CONTEXT_BYTES + activations + logits + (COMMUNICATION_BYTES if settings.gpus > 1 else 0)


def _broken_settings(facts: ModelFacts, settings: EngineSettings) -> Refusal | None:
    if not 0 < settings.gpu_memory_utilization <= 1:
        reason = f"gpu_memory_utilization {settings.gpu_memory_utilization} is not in (0, 1]"
        return Refusal(reason, Limit.SETTINGS)
    length = settings.max_model_len or 0
    if length > facts.max_position_embeddings:
        reason = f"max_model_len {length:,} is longer than the {facts.max_position_embeddings:,} positions of the model"
        return Refusal(reason, Limit.SETTINGS)
    seqs, tokens = settings.max_num_seqs or 0, settings.max_num_batched_tokens or 0
    if seqs > tokens:
        reason = f"max_num_seqs {seqs} is larger than max_num_batched_tokens {tokens}: a step has no token for each"
        return Refusal(reason, Limit.SETTINGS)
    return None


def _broken_split(facts: ModelFacts, settings: EngineSettings) -> Refusal | None:
    tp, pp = settings.tensor_parallel, settings.pipeline_parallel
    if facts.attention_heads % tp:
        return Refusal(f"{facts.attention_heads} attention heads cannot be split over {tp} GPUs", Limit.SPLIT)
    if facts.kv_heads % tp and tp % facts.kv_heads:
        return Refusal(f"{facts.kv_heads} KV heads can be neither split nor repeated over {tp} GPUs", Limit.SPLIT)
    if pp > facts.layers:
        return Refusal(f"{facts.layers} layers cannot be split into {pp} pipeline stages", Limit.SPLIT)
    return _split_groups(facts, settings)


def _split_groups(facts: ModelFacts, settings: EngineSettings) -> Refusal | None:
    tp = settings.tensor_parallel
    if stored := stored_as(settings.quantization, facts):
        reason = broken_split(stored, tp, facts.kv_heads)
    else:
        form = weight_format(settings.quantization, settings.dtype, facts)
        found = (broken_groups(part, width, tp, form, expert=part == EXPERT) for part, width in facts.row_widths)
        reason = next((each for each in found if each is not None), None)
    return None if reason is None else Refusal(reason, Limit.SPLIT)
