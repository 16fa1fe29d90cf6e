"""The families that can be sized, by `model_type`, and why others cannot. Pure."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raylane.deployments.sizing.families.family import DenseLayers, Experts, Family, HeadNorms, Locals, Names


def _long(positions: int, **more: Any) -> Mapping[str, Any]:
    return {"max_position_embeddings": positions, **more}


_GEMMA3 = _long(
    131_072,
    vocab_size=262_208,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    sliding_window=4096,
)
_QWEN_WINDOWS = {"sliding_window": None, "use_sliding_window": False, "max_window_layers": 28}
_ONE_HEAD, _ALL_HEADS = HeadNorms.ONE_HEAD, HeadNorms.ALL_HEADS
_QWEN_DENSE = DenseLayers.QWEN
_QWEN2 = Family(
    qkv_bias=True,
    out_bias=False,
    local=Locals.ABOVE_MAX_WINDOW_LAYERS,
    defaults=_long(32_768, **_QWEN_WINDOWS),
)
_QWEN2_VL = replace(_QWEN2, defaults=_long(32_768, **{**_QWEN_WINDOWS, "max_window_layers": 80}))
_QWEN3 = Family(
    head_norms=_ONE_HEAD,
    local=Locals.ABOVE_MAX_WINDOW_LAYERS,
    defaults=_long(32_768, head_dim=128, **_QWEN_WINDOWS),
)
_QWEN3_MOE = Family(
    head_norms=_ONE_HEAD,
    experts=Experts(dense=_QWEN_DENSE),
    defaults=_long(32_768),
)
_SPARSE, _SHARED, _FUSED_MLP = Names(mixture="block_sparse_moe"), Names(shared="shared_experts"), Names(fused_mlp=True)
_FIRST = Experts(shared_count=True, dense=DenseLayers.FIRST)
_DEEPSEEK_V2 = Family(names=_SHARED, latent=True, experts=_FIRST, defaults=_long(2048, first_k_dense_replace=0))
_DEEPSEEK_V3 = Family(names=_SHARED, latent=True, experts=_FIRST, defaults=_long(4096, first_k_dense_replace=3))

FAMILIES: Mapping[str, Family] = {
    "llama": Family(defaults=_long(2048)),
    "mistral": Family(defaults=_long(131_072, num_key_value_heads=8, sliding_window=4096)),
    "ministral": Family(defaults=_long(131_072, num_key_value_heads=8, sliding_window=4096)),
    "ministral3": Family(defaults=_long(262_144, num_key_value_heads=8, head_dim=128)),
    "phi3": Family(names=Names(fused_qkv=True, fused_mlp=True), defaults=_long(4096)),
    "granite": Family(defaults=_long(2048)),
    "smollm3": Family(tied=True, defaults=_long(32_768, num_key_value_heads=4, use_sliding_window=False)),
    "helium": Family(defaults=_long(4096, head_dim=128)),
    "seed_oss": Family(
        out_bias="attention_out_bias", defaults=_long(524_288, head_dim=128, num_key_value_heads=8, attention_bias=True)
    ),
    "ernie4_5": Family(
        qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", tied=True, defaults=_long(131_072, head_dim=128)
    ),
    "arcee": Family(gated=False, defaults=_long(4096)),
    "starcoder2": Family(
        names=None,
        qkv_bias="use_bias",
        out_bias="use_bias",
        mlp_bias="use_bias",
        gated=False,
        tied=True,
        norm_vectors=2,
        defaults=_long(4096, use_bias=True),
    ),
    "phi": Family(
        names=None,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        gated=False,
        norms_per_layer=1,
        norm_vectors=2,
        head_bias=True,
        defaults=_long(2048),
    ),
    "stablelm": Family(qkv_bias="use_qkv_bias", out_bias=False, norm_vectors=2, defaults=_long(4096)),
    "olmo": Family(norm_vectors=0, defaults=_long(2048)),
    "olmo2": Family(head_norms=_ALL_HEADS, defaults=_long(2048)),
    "olmo3": Family(
        head_norms=_ALL_HEADS,
        local=Locals.ALL_BUT_LAST_OF_PATTERN,
        pattern=4,
        pattern_key="",
        defaults=_long(2048, sliding_window=4096),
    ),
    "cohere": Family(
        head_norms=_ALL_HEADS, head_norms_if="use_qk_norm", norms_per_layer=1, tied=True, defaults=_long(8192)
    ),
    "cohere2": Family(
        norms_per_layer=1,
        tied=True,
        local=Locals.ALL_BUT_LAST_OF_PATTERN,
        pattern=4,
        window_extra=1,
        defaults=_long(8192, sliding_window=4096),
    ),
    "exaone4": Family(
        head_norms=_ONE_HEAD,
        local=Locals.ALL_BUT_LAST_OF_PATTERN,
        pattern=4,
        defaults=_long(2048, sliding_window=4096),
    ),
    "glm": Family(
        names=_FUSED_MLP,
        out_bias=False,
        defaults=_long(131_072, head_dim=128, num_key_value_heads=2, attention_bias=True),
    ),
    "glm4": Family(
        names=_FUSED_MLP,
        out_bias=False,
        norms_per_layer=4,
        defaults=_long(131_072, head_dim=128, num_key_value_heads=2, attention_bias=True),
    ),
    "hunyuan_v1_dense": Family(head_norms=_ONE_HEAD, defaults=_long(2048)),
    "qwen2": _QWEN2,
    "qwen2_vl": _QWEN2_VL,
    "qwen2_vl_text": _QWEN2_VL,
    "qwen2_5_vl": _QWEN2_VL,
    "qwen2_5_vl_text": _QWEN2_VL,
    "qwen3": _QWEN3,
    "qwen3_vl_text": replace(_QWEN3, local=Locals.EVERY, defaults=_long(128_000, head_dim=128)),
    "gemma": Family(tied=True, defaults=_long(8192, head_dim=256)),
    "gemma2": Family(
        norms_per_layer=4,
        tied=True,
        local=Locals.EVEN,
        defaults=_long(8192, head_dim=256, num_key_value_heads=4, sliding_window=4096),
    ),
    "gemma3_text": Family(
        head_norms=_ONE_HEAD,
        norms_per_layer=4,
        tied=True,
        local=Locals.ALL_BUT_LAST_OF_PATTERN,
        pattern=6,
        defaults=_GEMMA3,
    ),
    "mixtral": Family(
        names=_SPARSE, experts=Experts(), defaults=_long(131_072, num_key_value_heads=8, sliding_window=None)
    ),
    "qwen2_moe": replace(
        _QWEN2,
        qkv_bias="qkv_bias",
        local=Locals.EVERY,
        experts=Experts(shared_width="shared_expert_intermediate_size", shared_gate=True, dense=_QWEN_DENSE),
        defaults=_long(32_768, qkv_bias=True, use_sliding_window=False),
    ),
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_vl_moe_text": replace(_QWEN3_MOE, defaults=_long(128_000, head_dim=128)),
    "phimoe": Family(
        names=_SPARSE,
        experts=Experts(),
        norm_vectors=2,
        head_bias="lm_head_bias",
        defaults=_long(131_072, num_key_value_heads=8),
    ),
    "olmoe": Family(head_norms=_ALL_HEADS, experts=Experts(), defaults=_long(4096)),
    "flex_olmo": Family(head_norms=_ALL_HEADS, experts=Experts(), defaults=_long(4096)),
    "granitemoe": Family(names=_SPARSE, experts=Experts(), defaults=_long(2048)),
    "granitemoeshared": Family(
        names=None, experts=Experts(shared_width="shared_intermediate_size"), defaults=_long(2048)
    ),
    "minimax_m2": Family(
        names=_SPARSE,
        head_norms=_ALL_HEADS,
        experts=Experts(),
        defaults=_long(196_608, head_dim=128, num_key_value_heads=8),
    ),
    "glm4_moe": Family(
        names=_SHARED,
        out_bias=False,
        head_norms=_ONE_HEAD,
        head_norms_if="use_qk_norm",
        experts=_FIRST,
        defaults=_long(131_072, num_key_value_heads=8, first_k_dense_replace=1),
    ),
    "ernie4_5_moe": Family(
        names=_SHARED,
        qkv_bias="use_bias",
        out_bias="use_bias",
        mlp_bias="use_bias",
        tied=True,
        experts=Experts(shared_count=True, router_bias=True, dense=DenseLayers.BETWEEN),
        defaults=_long(131_072, num_key_value_heads=4),
    ),
    "llama4_text": Family(
        names=Names(mlp="feed_forward", mixture="feed_forward"),
        experts=Experts(
            shared_count=True, one_shared=True, dense=DenseLayers.INTERLEAVED, dense_width="intermediate_size_mlp"
        ),
        local=Locals.NEVER,
        defaults=_long(131_072, head_dim=128, num_key_value_heads=8, interleave_moe_layer_step=1),
    ),
    "gpt_oss": Family(
        names=Names(attention="attn"),
        sinks=True,
        experts=Experts(router_bias=True, biases=True),
        local=Locals.EVEN,
        defaults=_long(131_072, head_dim=64, num_key_value_heads=8, sliding_window=128, attention_bias=True),
    ),
    "deepseek_v2": _DEEPSEEK_V2,
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "deepseek_v32": replace(_DEEPSEEK_V3, defaults=_long(163_840, first_k_dense_replace=3)),
    "glm_moe_dsa": replace(_DEEPSEEK_V3, defaults=_long(202_752, first_k_dense_replace=3)),
    "glm4_moe_lite": replace(_DEEPSEEK_V3, defaults=_long(202_752)),
    "minicpm3": Family(latent=True, latent_cache=False, tied=True, defaults=_long(32_768)),
}
WRAPPED: Mapping[str, str] = {
    "gemma3": "gemma3_text",
    "mistral3": "mistral",
    "llava": "llama",
    "llava_next": "llama",
    "llama4": "llama4_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
}
"""Multimodal architectures, and the family of their language part where it does not say so itself."""

_STATES = "its linear-attention or state-space layers keep states instead of a KV cache, which has no size here"
UNSIZED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe", "jamba", "nemotron_h", "bamba",
            "falcon_h1", "granitemoehybrid", "mamba", "mamba2", "falcon_mamba", "zamba", "zamba2", "kimi_linear",
            "minimax", "minimax_text_01", "lfm2", "lfm2_moe", "plamo2", "bailing_moe_linear", "olmo_hybrid",
            "recurrent_gemma", "rwkv", "xlstm",
        ),
        _STATES,
    ),
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert", "new", "gte", "distilbert", "electra"),
        "it is an encoder without a KV cache, and nothing here sizes one",
    ),
    **dict.fromkeys(
        ("t5", "bart", "mbart", "whisper", "t5gemma", "mllama"),
        "its cross-attention to an encoder has no size here",
    ),
}  # fmt: skip
"""Families that are known and not counted, with the reason."""
