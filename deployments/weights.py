"""Bytes of weights and of KV cache for a model in a given format, and how much of it a step reads. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from raylane.cluster.catalog import Accelerator
from raylane.cluster.errors import UsageError
from raylane.deployments.checkpoint_format import NO_GROUPS
from raylane.deployments.model_facts import ModelFacts

GROUP_BYTES = 2 + 0.5  # of a group of weights in 4 bits: one 16-bit scale and one 4-bit zero point
SMALLEST_EXPERT_GROUP = 32


class Compute(StrEnum):
    """The arithmetic a weight format runs in."""

    HALF = "16-bit"
    FP8 = "fp8"
    INT8 = "int8"


@dataclass(frozen=True)
class WeightFormat:
    """One way to store the matrices of the layers. Embeddings, head, norms and routers stay in the model's dtype."""

    name: str
    bytes_per_weight: float
    compute: Compute
    group_size: int | None = None
    """Weights that share a scale and a zero point, which tensor parallelism must not split; None without groups."""

    @property
    def expert_group_size(self) -> int | None:
        """The same of routed experts, whose groups in AWQ and GPTQ vLLM 0.29 halves until a GPU's share is whole.

        It does so down to 32 weights (quantization/moe_wna16.py), and not for compressed-tensors.
        """
        if self.group_size is None or self.name == "int4":
            return self.group_size
        return min(self.group_size, SMALLEST_EXPERT_GROUP)


_FORMATS: Mapping[str, WeightFormat] = {
    item.name: item
    for item in (
        WeightFormat("fp8", 1, Compute.FP8),
        WeightFormat("int8", 1, Compute.INT8),
        WeightFormat("awq", 0.5, Compute.HALF),
        WeightFormat("gptq", 0.5, Compute.HALF),
        WeightFormat("int4", 0.5, Compute.HALF),
        WeightFormat("bitsandbytes", 0.5 + 4 / 64, Compute.HALF),
    )
}
_GROUPED = frozenset({"awq", "gptq", "int4"})  # their bytes above are without what a group adds
_ALIASES = {
    "awq_marlin": "awq",
    "auto_awq": "awq",
    "gptq_marlin": "gptq",
    "auto_gptq": "gptq",
    "int4_awq": "awq",
    "w8a8": "int8",
    "fbgemm_fp8": "fp8",
    "fp8_per_tensor": "fp8",
    "fp8_per_block": "fp8",
    "fp8_per_channel": "fp8",
    "modelopt": "fp8",
}
# Methods that say how a checkpoint is stored but not with how many bits: that stands in the checkpoint.
_BITS_IN_CHECKPOINT = frozenset(
    {
        "compressed-tensors",
        "modelopt",
        "bitsandbytes",
        "gptq",
        "gptq_marlin",
        "auto_gptq",
        "awq",
        "awq_marlin",
        "auto_awq",
    }
)
_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "half": 2, "bf16": 2, "fp16": 2, "float32": 4, "float": 4, "fp32": 4}


def dtype_bytes(dtype: str, facts: ModelFacts) -> int:
    """Bytes of one unquantized weight. `auto` is the checkpoint's own type, where float32 is served as 16 bits."""
    if dtype == "auto":
        return 2
    if dtype not in _DTYPE_BYTES:
        raise UsageError(f"dtype: {dtype!r} is not one of auto, {', '.join(_DTYPE_BYTES)} ({facts.model_type})")
    return _DTYPE_BYTES[dtype]


def weight_format(quantization: str | None, dtype: str, facts: ModelFacts) -> WeightFormat:
    """The format the layers are stored in: the quantization named, else the checkpoint's own, else plain `dtype`.

    The checkpoint's own counts as well where the name leaves the bits to it (compressed-tensors, gptq, ...).
    """
    name = quantization or facts.quantization
    if name in _BITS_IN_CHECKPOINT and facts.quantization:
        name = facts.quantization
    if name in {None, "none"}:
        return WeightFormat("none", dtype_bytes(dtype, facts), Compute.HALF)
    name = _ALIASES.get(str(name), str(name))
    if name not in _FORMATS:
        raise UsageError(f"quantization: {name!r} cannot be sized (known: {', '.join([*_FORMATS, *_ALIASES])})")
    found, size = _FORMATS[name], facts.group_size
    if name not in _GROUPED or size == NO_GROUPS:
        return found
    return replace(found, bytes_per_weight=found.bytes_per_weight + GROUP_BYTES / size, group_size=size)


def kv_element_bytes(kv_cache_dtype: str, dtype: str, facts: ModelFacts) -> int:
    """Bytes of one cached number: 1 for the fp8 types, else that of the model's dtype."""
    return 1 if kv_cache_dtype.startswith("fp8") else dtype_bytes("auto" if dtype == "auto" else dtype, facts)


def kv_bytes_per_token(facts: ModelFacts, kv_cache_dtype: str = "auto", dtype: str = "auto") -> int:
    """KV cache of one token in all layers: of each 2 x kv_heads x head_dim x bytes, or a latent vector's."""
    element = kv_element_bytes(kv_cache_dtype, dtype, facts)
    return int(sum(each.layers * each.heads * each.bytes_per_token(element) for each in facts.kv_layers))


def weight_bytes(facts: ModelFacts, quantization: str | None = None, dtype: str = "auto") -> float:
    """Bytes of all weights: the layers' matrices in the quantized format, everything else in `dtype`."""
    plain = facts.parameters - facts.linear_parameters
    layers = facts.linear_parameters * weight_format(quantization, dtype, facts).bytes_per_weight
    return layers + plain * dtype_bytes(dtype, facts)


def weights_read_bytes(facts: ModelFacts, batch: int, quantization: str | None = None, dtype: str = "auto") -> float:
    """Bytes of weights one decode step over `batch` sequences reads, over all GPUs.

    The input embedding is left out unless it is the head as well. Of a mixture's experts only those that some
    sequence picked are read: with even routing a share 1 - (1 - k/E)^batch of them.
    """
    everything = weight_bytes(facts, quantization, dtype)
    if not facts.tied_embeddings:
        everything -= facts.input_embedding_parameters * dtype_bytes(dtype, facts)
    if facts.experts == 1:
        return everything
    untouched = (1 - facts.experts_per_token / facts.experts) ** batch
    return everything - untouched * facts.expert_parameters * weight_format(quantization, dtype, facts).bytes_per_weight


def peak_flops(gpu: Accelerator, quantization: str | None, dtype: str, facts: ModelFacts) -> float:
    """Operations per second one GPU can do in the format's arithmetic.

    Weight-only formats (INT4) and FP8 weights on a card without FP8 run in 16 bits. INT8 has FP8's rate, or twice the
    16-bit rate on cards without FP8 (NVIDIA A100 data sheet: 624 against 312).
    """
    compute = weight_format(quantization, dtype, facts).compute
    if compute is Compute.FP8:
        return gpu.fp8_flops or gpu.bf16_flops
    if compute is Compute.INT8:
        return gpu.fp8_flops or 2 * gpu.bf16_flops
    return gpu.bf16_flops
