"""Bytes of weights and of KV cache for a model in a given format, and how much of it a step reads. Pure."""

from raylane.cluster.catalog import Accelerator
from raylane.cluster.errors import UsageError
from raylane.deployments.sizing.model_facts import ModelFacts
from raylane.deployments.sizing.quantization.formats import KNOWN, Compute, WeightFormat, named, plain_name
from raylane.deployments.sizing.quantization.kv_cache import AUTO
from raylane.deployments.sizing.quantization.linears import REPLICATED, Kind
from raylane.deployments.sizing.quantization.stored import Stored

_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "half": 2, "bf16": 2, "fp16": 2, "float32": 4, "float": 4, "fp32": 4}


def dtype_bytes(dtype: str, facts: ModelFacts) -> int:
    """Bytes of one unquantized weight. `auto` is the checkpoint's own type, where float32 is served as 16 bits."""
    if dtype == "auto":
        return 2
    if dtype not in _DTYPE_BYTES:
        raise UsageError(f"dtype: {dtype!r} is not one of auto, {', '.join(_DTYPE_BYTES)} ({facts.model_type})")
    return _DTYPE_BYTES[dtype]


def takes_checkpoints_own(quantization: str | None, facts: ModelFacts) -> bool:
    """Whether the checkpoint decides the format: nothing else is named, or only the method it has."""
    if facts.quantization is None:
        return False
    if quantization in {None, facts.quantization}:
        return True
    own, asked = facts.quantization.split()[0].rstrip(":"), str(quantization)
    return asked in _BITS_IN_CHECKPOINT or plain_name(asked) == plain_name(own)


# Methods that say how a checkpoint is stored but not with how many bits: that stands in the checkpoint.
_BITS_IN_CHECKPOINT = frozenset(
    {
        "auto-round",
        "auto_awq",
        "auto_gptq",
        "awq",
        "awq_marlin",
        "bitsandbytes",
        "compressed-tensors",
        "gptq",
        "gptq_marlin",
        "inc",
        "modelopt",
        "modelopt_mixed",
        "quark",
        "torchao",
    }
)


def weight_format(quantization: str | None, dtype: str, facts: ModelFacts) -> WeightFormat:
    """The one format of all matrices: the quantization named, else the checkpoint's own, else plain `dtype`.

    UsageError for one that has no size here.
    """
    name = facts.quantization if takes_checkpoints_own(quantization, facts) else quantization
    if name in {None, "none"}:
        return WeightFormat("none", dtype_bytes(dtype, facts), Compute.HALF)
    found = named(str(name), facts.group_size)
    if found is None:
        raise UsageError(f"quantization: {plain_name(str(name))!r} cannot be sized (known: {', '.join(KNOWN)})")
    return found


def matrices(quantization: str | None, dtype: str, facts: ModelFacts) -> tuple[tuple[WeightFormat, int, bool], ...]:
    """Formats of the matrices of the layers, how many weights each has, and whether they are routed experts'."""
    plain = WeightFormat("none", dtype_bytes(dtype, facts), Compute.HALF)
    if stored := stored_as(quantization, facts):
        return tuple((item.format or plain, item.weights, item.expert) for item in stored if item.in_layers)
    form = weight_format(quantization, dtype, facts)
    others = facts.linear_parameters - facts.expert_parameters
    dense = (plain if form.experts_only else form, others, False)
    return (dense, (form, facts.expert_parameters, True)) if facts.expert_parameters else (dense,)


def stored_as(quantization: str | None, facts: ModelFacts) -> tuple[Stored, ...]:
    """The matrices as the checkpoint stores them; () where it does not decide, or not matrix by matrix."""
    return facts.stored if takes_checkpoints_own(quantization, facts) else ()


def replicated_bytes(facts: ModelFacts, quantization: str | None = None, dtype: str = "auto") -> float:
    """Bytes of the matrices that every GPU of a tensor-parallel replica holds whole."""
    plain = dtype_bytes(dtype, facts)
    if stored := stored_as(quantization, facts):
        return sum(item.bytes(plain) for item in stored if item.part == REPLICATED)
    form = weight_format(quantization, dtype, facts)
    return facts.replicated_parameters * (plain if form.experts_only else form.bytes_per_weight)


def kv_element_bytes(kv_cache_dtype: str, dtype: str, facts: ModelFacts) -> float:
    """Bytes of one cached number. `auto` is the checkpoint's own type, else the model's dtype.

    NVFP4 has half a byte and an FP8 scale for 16 numbers (vLLM 0.29, utils/torch_utils.py nvfp4_kv_cache_full_dim),
    the types by token and head have a 32-bit scale for each head (v1/attention/backends/triton_attn.py). UsageError
    for a type without a size here.
    """
    kind = facts.kv_cache_dtype if kv_cache_dtype == AUTO else kv_cache_dtype
    if kind == AUTO or kind in _DTYPE_BYTES:
        return dtype_bytes(dtype if kind == AUTO else kind, facts)
    if kind.endswith("_per_token_head"):
        return (0.5 if kind.startswith("int4") else 1) + 4 / facts.head_dim
    if kind.startswith("nvfp4"):
        return 1 / 2 + 1 / 16
    if kind.startswith(("fp8", "int8")):
        return 1
    raise UsageError(f"kv_cache_dtype: {kind!r} cannot be sized")


def kv_bytes_per_token(facts: ModelFacts, kv_cache_dtype: str = "auto", dtype: str = "auto") -> float:
    """KV cache of one token in all layers: of each 2 x kv_heads x head_dim x bytes, or a latent vector's."""
    element = kv_element_bytes(kv_cache_dtype, dtype, facts)
    return sum(each.layers * each.heads * each.bytes_per_token(element) for each in facts.kv_layers)


def head_bytes(facts: ModelFacts, quantization: str | None = None, dtype: str = "auto") -> float:
    """Bytes of the output head where it is stored apart from the input table; 0 where it is the same."""
    if facts.tied_embeddings:
        return 0
    plain = dtype_bytes(dtype, facts)
    own = (item.bytes(plain) for item in stored_as(quantization, facts) if item.kind is Kind.HEAD)
    return next(own, facts.head_parameters * plain)


def input_table_bytes(facts: ModelFacts, quantization: str | None = None, dtype: str = "auto") -> float:
    """Bytes of the table that tokens are looked up in."""
    plain = dtype_bytes(dtype, facts)
    own = (item.bytes(plain) for item in stored_as(quantization, facts) if item.kind is Kind.TABLE)
    return next(own, facts.input_embedding_parameters * plain)


def weight_bytes(facts: ModelFacts, quantization: str | None = None, dtype: str = "auto") -> float:
    """Bytes of all weights: each matrix in its format, everything else in `dtype`."""
    plain = dtype_bytes(dtype, facts)
    layers = sum(weights * form.bytes_per_weight for form, weights, _ in matrices(quantization, dtype, facts))
    tables = input_table_bytes(facts, quantization, dtype) + head_bytes(facts, quantization, dtype)
    in_tables = facts.input_embedding_parameters + (0 if facts.tied_embeddings else facts.head_parameters)
    return layers + tables + (facts.parameters - facts.linear_parameters - in_tables) * plain


def weights_read_bytes(facts: ModelFacts, batch: int, quantization: str | None = None, dtype: str = "auto") -> float:
    """Bytes of weights one decode step over `batch` sequences reads, over all GPUs.

    The input embedding is left out unless it is the head as well. Of a mixture's experts only those that some
    sequence picked are read: with even routing a share 1 - (1 - k/E)^batch of them.
    """
    everything = weight_bytes(facts, quantization, dtype)
    if not facts.tied_embeddings:
        everything -= input_table_bytes(facts, quantization, dtype)
    if facts.experts == 1:
        return everything
    untouched = (1 - facts.experts_per_token / facts.experts) ** batch
    parts = matrices(quantization, dtype, facts)
    return everything - untouched * sum(weights * form.bytes_per_weight for form, weights, expert in parts if expert)


def peak_flops(gpu: Accelerator, quantization: str | None, dtype: str, facts: ModelFacts) -> float:
    """Operations per second one GPU can do in the arithmetic of the formats, each as often as it has weights.

    Weight-only formats (INT4) and FP8 weights on a card without FP8 run in 16 bits. INT8 has FP8's rate, or twice the
    16-bit rate on cards without FP8 (NVIDIA A100 data sheet: 624 against 312).
    """
    rates = {
        Compute.HALF: gpu.bf16_flops,
        Compute.FP8: gpu.fp8_flops or gpu.bf16_flops,
        Compute.INT8: gpu.fp8_flops or 2 * gpu.bf16_flops,
    }
    parts = [(weights, rates[form.compute]) for form, weights, _ in matrices(quantization, dtype, facts)]
    return sum(weights for weights, _ in parts) / sum(weights / rate for weights, rate in parts)
