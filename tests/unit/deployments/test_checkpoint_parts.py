"""Which matrices of a checkpoint are quantized: judged here as the installed vLLM judges it, matrix by matrix."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from raylane.deployments.sizing.quantization.formats import WeightFormat
from raylane.deployments.sizing.quantization.kv_cache import checkpoint_kv_cache_dtype
from raylane.deployments.sizing.quantization.linears import Linear, attention, experts, gated_mlp, tables
from raylane.deployments.sizing.quantization.methods import resolver
from raylane.deployments.sizing.quantization.skips import UnsizedError
from raylane.deployments.sizing.quantization.splits import broken_split
from raylane.deployments.sizing.quantization.stored import stored_matrices

LAYERS = [f"model.layers.{number}" for number in (0, 1, 10)]
LINEARS: list[Linear] = [
    *(each for layer in LAYERS for each in attention(layer, 1024, 8, 4, 128, fused=False)),
    *(each for layer in LAYERS[:2] for each in gated_mlp(f"{layer}.mlp", "an MLP", 1024, 4096)),
    experts(f"{LAYERS[2]}.mlp", 1024, 512, 8),
    *tables("", 1024, 32000, tied=False),
]
ATTENTION = [f"{layer}.self_attn.{part}_proj" for layer in LAYERS for part in "qkvo"]
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True, "dynamic": False}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
ROUNDED = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int"}
QUARK_FP8 = {
    "weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False, "symmetric": True},
    "input_tensors": {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": True},
}


def fp8(*left: str, key: str = "modules_to_not_convert") -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": "dynamic", key: list(left)}


def compressed(*left: str, groups: Mapping[str, Any] | None = None) -> dict[str, Any]:
    whole = {"g": {"targets": ["Linear"], "weights": FLOAT8}}
    declared = {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": list(left)}
    return {**declared, "config_groups": groups or whole}


def modelopt(*left: str, algorithm: str = "FP8", **more: Any) -> dict[str, Any]:
    return {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": list(left), **more}


def quark(*left: str, layers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    declared = {"quant_method": "quark", "export": {"kv_cache_group": [], "pack_method": "reorder"}}
    more = {"global_quant_config": QUARK_FP8, "layer_type_quant_config": {}, "layer_quant_config": layers or {}}
    return {**declared, **more, "exclude": list(left)}


CASES = {
    "fp8": fp8(),
    "fp8, attention left": fp8(*ATTENTION, "lm_head"),
    "fp8, the older key": fp8(*ATTENTION, key="ignored_layers"),
    "fp8, an expert stands for all": fp8("model.layers.10.mlp.experts.3.down_proj"),
    "fp8, the name vLLM holds it by": fp8("model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.gate_up_proj"),
    "fp8, a part of a name is none": fp8("self_attn", "model.layers.1"),
    "fp8, some of q, k and v": fp8("model.layers.0.self_attn.q_proj"),
    "fbgemm": {
        "quant_method": "fbgemm_fp8",
        "activation_scale_ub": 1200.0,
        "modules_to_not_convert": [*ATTENTION[:4], "lm_head"],
    },
    "compressed tensors": compressed("lm_head"),
    "compressed tensors, a pattern": compressed("re:.*self_attn.*", "lm_head"),
    "compressed tensors, patterns of parts": compressed(r"re:.*\.(q|k|v)_proj$", r"re:.*layers\.1\.mlp\..*"),
    "compressed tensors, a pattern for q alone": compressed(r"re:.*q_proj"),
    "compressed tensors, whole names": compressed(*ATTENTION[4:8]),
    "compressed tensors, first experts": compressed("re:.*experts.*"),
    "compressed tensors, an expert that is not asked": compressed("model.layers.10.mlp.experts.3.down_proj"),
    "compressed tensors, a class": compressed("Linear"),
    "compressed tensors, groups": compressed(
        "lm_head",
        groups={
            "attention": {"targets": ["re:.*self_attn.*"], "weights": FLOAT8},
            "mlp": {"targets": ["re:.*mlp.*(gate|up|down)_proj"], "weights": INT4, "format": "pack-quantized"},
        },
    ),
    "compressed tensors, one group that names parts": compressed(
        groups={"g": {"targets": [r"re:.*\.(q|k|v|o)_proj$"], "weights": FLOAT8}}
    ),
    "compressed tensors, the head too": compressed(groups={"g": {"targets": ["Linear", "lm_head"], "weights": FLOAT8}}),
    "compressed tensors, a group of attention": compressed(
        groups={
            "kv": {"targets": ["LlamaAttention"], "weights": None},
            "g": {"targets": ["Linear"], "weights": FLOAT8},
        }
    ),
    "ModelOpt with the head": modelopt(),
    "ModelOpt, wildcards": modelopt("lm_head", "*self_attn*"),
    "ModelOpt, a tree": modelopt("lm_head", "model.layers.0.self_attn*", "model.layers.10.mlp.experts*"),
    "ModelOpt, a part of a name": modelopt("lm_head", "self_attn", "layers.1"),
    "ModelOpt, parts by name": modelopt("lm_head", *ATTENTION[:3]),
    "ModelOpt, q alone": modelopt("model.layers.0.self_attn.q_proj"),
    "ModelOpt, its own file": {
        "quant_method": "modelopt",
        "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head", "*mlp*"]},
    },
    "ModelOpt NVFP4": {**modelopt("lm_head", "*self_attn*", algorithm="NVFP4"), "quant_method": "modelopt_fp4"},
    "ModelOpt, by layer": {
        **modelopt("lm_head", algorithm="MIXED_PRECISION"),
        "quant_method": "modelopt_mixed",
        "quantized_layers": {
            **{name: {"quant_algo": "FP8"} for name in ATTENTION[:4]},
            "model.layers.10.mlp.experts.0.gate_proj": {"quant_algo": "NVFP4", "group_size": 16},
            "model.layers.1.mlp.down_proj": {"quant_algo": "NVFP4", "group_size": 16},
        },
    },
    "GPTQ": {**GPTQ, "modules_in_block_to_quantize": ["self_attn", "mlp"]},
    "GPTQ, blocks": {
        **GPTQ,
        "modules_in_block_to_quantize": [
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            ["mlp.down_proj"],
        ],
    },
    "GPTQ, rules": {
        **GPTQ,
        "modules_in_block_to_quantize": ["self_attn", "mlp", "lm_head"],
        "lm_head": True,
        "dynamic": {r"-:.*self_attn.*": {}, r"+:.*layers\.1\..*": {"bits": 8}, r".*experts": {"bits": 8}},
    },
    "AWQ": {**AWQ, "modules_to_not_convert": ["nothing"]},
    "AWQ, attention left": {**AWQ, "modules_to_not_convert": ["self_attn", "lm_head"]},
    "AWQ, a layer left, and those that begin so": {**AWQ, "modules_to_not_convert": ["model.layers.1"]},
    "AWQ, experts left": {**AWQ, "modules_to_not_convert": ["mlp.experts"]},
    "AWQ, q alone": {**AWQ, "modules_to_not_convert": ["q_proj"]},
    "AWQ with the head": {**AWQ, "lm_head": True, "modules_to_not_convert": ["self_attn"]},
    "auto-round": ROUNDED,
    "auto-round, blocks": {**ROUNDED, "block_name_to_quantize": "model.layers.0,model.layers.10"},
    "auto-round, others by name": {
        **ROUNDED,
        "extra_config": {
            "model.layers.0.mlp.down_proj": {"bits": 16},
            r".*self_attn.*": {"bits": 16, "data_type": "float"},
            "lm_head": {"bits": 8},
        },
    },
    "MXFP4": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.10.mlp.experts"]},
    "experts in INT8": {"quant_method": "experts_int8"},
    "Quark": quark("lm_head"),
    "Quark, patterns": quark("lm_head", "re:.*self_attn.*"),
    "Quark, an expert stands for all": quark("model.layers.10.mlp.experts.3.down_proj"),
    "Quark, q alone": quark("model.layers.0.self_attn.q_proj"),
}

FLOAT_KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
KV_CACHES: dict[str, tuple[dict[str, Any], str]] = {
    "FP8 weights alone": (fp8(), "auto"),
    "FP8 with a scheme that nobody asks": ({**fp8(), "kv_cache_scheme": FLOAT_KV}, "auto"),
    "ModelOpt says nothing": (modelopt(), "auto"),
    "ModelOpt": (modelopt(kv_cache_quant_algo="FP8"), "fp8_e4m3"),
    "ModelOpt, a scheme": (modelopt(kv_cache_scheme=FLOAT_KV), "fp8_e4m3"),
    "ModelOpt, scales of every token": (modelopt(kv_cache_scheme={**FLOAT_KV, "dynamic": True}), "auto"),
    "ModelOpt, a scheme of 4 bits": (modelopt(kv_cache_scheme={"num_bits": 4, "type": "float"}), "nvfp4"),
    "ModelOpt, 4 bits": (modelopt(kv_cache_quant_algo="nvfp4"), "nvfp4"),
    "ModelOpt, integers": (modelopt(kv_cache_quant_algo="INT8"), "auto"),
    "ModelOpt, inside": (
        {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
        "fp8_e4m3",
    ),
    "ModelOpt FP4": ({**modelopt(kv_cache_quant_algo="FP8"), "quant_method": "modelopt_fp4"}, "fp8_e4m3"),
    "Quark, whose scales are used when asked for": (
        {**quark(), "export": {"kv_cache_group": ["*k_proj", "*v_proj"]}},
        "auto",
    ),
}
# Experts' width, hidden size, GPUs: what becomes of blocks of 128 x 128 when each GPU has its share.
EXPERT_BLOCKS = [(384, 1024, 2), (384, 1024, 1), (768, 2048, 8), (1536, 4096, 8), (352, 1024, 2), (384, 1040, 2)]
# Inputs, parts of the outputs, GPUs, whether the inputs are cut.
DENSE_BLOCKS = [
    (4096, (1024,), 2, True),
    (4096, (1024,), 64, True),
    (1408, (2048,), 2, True),
    (1408, (2048,), 1, True),
    (1024, (1024, 512, 512), 4, False),
    (1024, (1024, 512, 512), 8, False),
    (1024, (1408, 1408), 2, False),
    (1024, (1440, 1440), 1, False),
]

THEIRS = """
import json, sys
from types import SimpleNamespace
import torch
import vllm.distributed
from vllm.model_executor.layers.fused_moe.oracle.fp8 import refine_fp8_moe_block_shape
from vllm.model_executor.layers.quantization.inc.schemes import inc_wna16_scheme
from vllm.model_executor.layers.quantization.utils.fp8_utils import validate_fp8_block_shape
from vllm.utils.torch_utils import resolve_kv_cache_dtype_string
from vllm.model_executor.layers.fused_moe import RoutedExperts, UnquantizedFusedMoEMethod
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear, UnquantizedLinearMethod)
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead, UnquantizedEmbeddingMethod, VocabParallelEmbedding)

UnquantizedFusedMoEMethod.__init__ = lambda self, *args, **more: None
vllm.distributed.get_tensor_model_parallel_world_size = lambda: 1  # each layer below names its own
inc_wna16_scheme.current_platform = SimpleNamespace(is_cpu=lambda: False)  # which has no quantized experts
PLAIN = (UnquantizedFusedMoEMethod, UnquantizedLinearMethod, UnquantizedEmbeddingMethod, type(None))
CLASSES = {"qkv_proj": QKVParallelLinear, "gate_up_proj": MergedColumnParallelLinear, "o_proj": RowParallelLinear,
           "down_proj": RowParallelLinear, "experts": RoutedExperts, "lm_head": ParallelLMHead,
           "embed_tokens": VocabParallelEmbedding}
RENAMED = {"auto-round": "inc", "gptq": "auto_gptq", "awq": "auto_awq"}
PARTS = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def judged(config, name):
    kind = CLASSES[name.split(".")[-1]]
    layer = kind.__new__(kind)
    torch.nn.Module.__init__(layer)
    layer.ckpt_gate_proj_name, layer.ckpt_up_proj_name, layer.ckpt_down_proj_name = "gate_proj", "up_proj", "down_proj"
    layer.moe_config = SimpleNamespace(hidden_dim=1024, intermediate_size_per_partition_unpadded=512)
    try:
        method = config.get_quant_method(layer, name)
    except ValueError as error:
        words = str(error)
        return "refused" if "some but not all" in words or "different quantization" in words else "quantized"
    except Exception:  # a kernel or a setting that is not there: it got as far as quantizing
        return "quantized"
    if isinstance(method, PLAIN):
        return "plain"
    bits = getattr(getattr(method, "quant_config", None), "weight_bits", None)
    return f"{bits} bits" if bits else "quantized"


def dense(inputs, outputs, gpus, by_rows):
    own = [width // (1 if by_rows else gpus) for width in outputs]
    try:
        validate_fp8_block_shape(SimpleNamespace(tp_size=gpus), inputs, sum(outputs),
                                 inputs // (gpus if by_rows else 1), own, [128, 128])
    except ValueError:
        return False
    return True


def experts(width, hidden, gpus):
    own = SimpleNamespace(intermediate_size_per_partition=width // gpus, hidden_dim=hidden, tp_size=gpus)
    return refine_fp8_moe_block_shape(own, [128, 128]) is not None


cases, names, caches, experts_blocks, dense_blocks = json.loads(sys.stdin.read())
found = {}
for case, declared in cases.items():
    method = declared["quant_method"]
    config = get_quantization_config(RENAMED.get(method, method)).from_config(declared)
    config.packed_modules_mapping = PARTS
    found[case] = [judged(config, name) for name in names]
kv = [resolve_kv_cache_dtype_string("auto", SimpleNamespace(hf_config=SimpleNamespace(quantization_config=each)))
      for each in caches]
print(json.dumps([found, kv, [experts(*each) for each in experts_blocks], [dense(*each) for each in dense_blocks]]))
"""
"""vLLM's own judgement of each matrix, without weights, in a process of its own."""


@dataclass(frozen=True)
class Theirs:
    """What vLLM says of all tables of this file."""

    parts: dict[str, list[str]]
    kv_caches: list[str]
    finer_experts: list[bool]
    dense_fits: list[bool]


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    names, caches = [linear.name for linear in LINEARS], [declared for declared, _ in KV_CACHES.values()]
    asked = json.dumps([CASES, names, caches, EXPERT_BLOCKS, DENSE_BLOCKS])
    done = subprocess.run(
        [sys.executable, "-c", THEIRS], input=asked, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Theirs(*json.loads(done.stdout.splitlines()[-1]))


def ours(declared: Mapping[str, Any], linear: Linear) -> WeightFormat | str | None:
    try:
        return resolver(declared)(linear)
    except UnsizedError:
        return "refused"


@pytest.mark.parametrize("case", CASES)
def test_what_is_quantized_is_what_vllm_quantizes(case: str, theirs: Theirs) -> None:
    for linear, judged in zip(LINEARS, theirs.parts[case], strict=True):
        found = ours(CASES[case], linear)
        if isinstance(found, WeightFormat):
            bits = int(found.bytes_per_weight * 8)
            assert judged in {"quantized", f"{bits} bits"}, linear.name
        else:
            assert judged == (found or "plain"), linear.name


@pytest.mark.parametrize("case", KV_CACHES)
def test_the_kv_cache_a_checkpoint_asks_for(case: str) -> None:
    declared, expected = KV_CACHES[case]
    assert checkpoint_kv_cache_dtype({"quantization_config": declared}, declared) == expected


def test_the_kv_caches_are_vllms(theirs: Theirs) -> None:
    assert theirs.kv_caches == [expected for _, expected in KV_CACHES.values()]


def block_fits(linear: Linear, gpus: int, quantized: dict[str, Any]) -> bool:
    return broken_split(stored_matrices(quantized, [linear]), gpus, kv_heads=8) is None


def test_experts_blocks_are_made_finer_where_vllm_can(theirs: Theirs) -> None:
    blocks = {**fp8(), "weight_block_size": [128, 128]}
    for (width, hidden, gpus), finer in zip(EXPERT_BLOCKS, theirs.finer_experts, strict=True):
        as_they_are = (width // gpus) % 128 == 0
        fits = block_fits(experts("model.layers.0.mlp", hidden, width, 8), gpus, blocks)
        assert fits is (as_they_are or finer), (width, hidden, gpus)


def test_shares_of_dense_matrices_are_whole_blocks_where_vllm_demands_it(theirs: Theirs) -> None:
    weights = {**FLOAT8, "strategy": "block", "block_structure": [128, 128]}
    blocks = compressed(groups={"g": {"targets": ["Linear"], "weights": weights}})
    for (inputs, outputs, gpus, by_rows), whole in zip(DENSE_BLOCKS, theirs.dense_fits, strict=True):
        linear = Linear("model.layers.0.x", "an MLP", inputs, outputs, by_rows=by_rows)
        assert block_fits(linear, gpus, blocks) is whole, (inputs, outputs, gpus)
