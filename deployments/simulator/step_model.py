"""How long one engine step takes, from the model's size and four constants of the GPU. Pure.

    step = t0 + max(W / (BW eta TP), 2 P n / (FLOPS mfu TP)) + kv x context / (BW eta TP)
         + (2 P x prompt tokens + attention) / (FLOPS mfu TP) + all-reduce

W is what a step reads of the weights, P the active parameters, n the decoding requests. The second branch of the
maximum is the arithmetic of decoding itself; it takes over at several hundred requests. Attention's own arithmetic
counts 4 x layers x heads x head_dim for every pair of tokens and matters for prompts beyond a few thousand tokens.
"""

from dataclasses import dataclass, replace

from raylane.cluster.catalog import Accelerator
from raylane.deployments.sizing.kv_layout import on_one_gpu, read_bytes
from raylane.deployments.sizing.memory import EngineSettings
from raylane.deployments.sizing.model_facts import ModelFacts
from raylane.deployments.sizing.roofline import ALL_REDUCES_PER_LAYER, Link, all_reduce_s, stage_hops_s
from raylane.deployments.sizing.weights import kv_element_bytes, peak_flops, weights_read_bytes


@dataclass(frozen=True)
class StepConstants:
    """What distinguishes a real GPU and engine from its data sheet; fitted by `raylane calibrate`."""

    bandwidth_share: float
    """eta: share of the memory bandwidth a step reaches."""
    compute_share: float
    """mfu: share of the peak arithmetic prompts reach."""
    step_overhead_s: float
    """t0: time of a step that does nothing."""
    first_token_extra_s: float
    """What a request spends outside the steps: tokenizing, handing over, answering."""


@dataclass(frozen=True)
class StepModel:
    """Coefficients of the step time for one model on its GPUs, in seconds per unit."""

    fixed_s: float
    weights_s: tuple[float, ...]
    """Reading the weights, by number of requests in the step; the last entry holds for more."""
    token_s: float
    """Arithmetic of one token, prompt or output."""
    token_link_s: float
    """Sending one token's partial sums."""
    context_s: float
    """Reading the KV cache of one token."""
    pair_s: float
    """Attention's arithmetic for one pair of tokens."""
    first_token_extra_s: float

    def step_s(self, batch: int, context: float, chunk_tokens: int = 0, pairs: float = 0.0, past: int = 0) -> float:
        """Seconds of a step in which `batch` requests decode over `context` tokens beside pieces of prompts."""
        touched = min(max(1, batch + chunk_tokens), len(self.weights_s)) - 1
        decode_s = max(self.weights_s[touched], batch * self.token_s)
        tokens_s = chunk_tokens * self.token_s + (batch + chunk_tokens) * self.token_link_s
        return self.fixed_s + decode_s + (context + past) * self.context_s + tokens_s + pairs * self.pair_s

    def slowed(self, factor: float) -> "StepModel":
        """Steps that take `factor` times as long."""
        return replace(
            self,
            fixed_s=self.fixed_s * factor,
            weights_s=tuple(value * factor for value in self.weights_s),
            token_s=self.token_s * factor,
            token_link_s=self.token_link_s * factor,
            context_s=self.context_s * factor,
            pair_s=self.pair_s * factor,
        )


def step_model(
    facts: ModelFacts,
    gpu: Accelerator,
    settings: EngineSettings,
    constants: StepConstants,
    link: Link,
    *,
    slowdown: float = 1.0,
) -> StepModel:
    """The step time of a model with these settings. `slowdown` 2 makes everything take twice as long.

    Pipeline stages are taken as always full: they divide KV reading and prompts, not the reading of weights. That is
    right under load and too kind to the first token of a lone request.
    """
    tp, pp = settings.tensor_parallel, settings.pipeline_parallel
    bandwidth = gpu.bandwidth_bytes_per_s * constants.bandwidth_share * tp
    flops = peak_flops(gpu, settings.quantization, settings.dtype, facts) * constants.compute_share * tp * pp
    latency_s = all_reduce_s(facts, tp, 0, link) + stage_hops_s(facts, pp, 0, link)
    share = 2 * (tp - 1) / tp * ALL_REDUCES_PER_LAYER * facts.layers + (pp - 1)
    sizes = range(1, 2 if facts.experts == 1 else 513)
    weights = (weights_read_bytes(facts, size, settings.quantization, settings.dtype) for size in sizes)
    element = kv_element_bytes(settings.kv_cache_dtype, settings.dtype, facts)
    kv_bytes = tp * read_bytes(on_one_gpu(facts.kv_layers, element, tp, 1), 1)  # windows count as if they saw all
    return StepModel(
        fixed_s=slowdown * (constants.step_overhead_s + latency_s),
        weights_s=tuple(slowdown * size / bandwidth for size in weights),
        token_s=slowdown * 2 * facts.active_parameters / flops,
        token_link_s=slowdown * share * facts.hidden_size * 2 / link.bytes_per_s / pp,
        context_s=slowdown * kv_bytes / (bandwidth * pp),
        pair_s=slowdown * 4 * facts.layers * facts.attention_heads * facts.head_dim / flops,
        first_token_extra_s=slowdown * constants.first_token_extra_s,
    )
