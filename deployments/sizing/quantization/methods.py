"""The formats of a checkpoint's matrices, by its quant_method. Pure.

Each resolver follows its file of vllm/model_executor/layers/quantization; what is not named there has no size.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from raylane.deployments.sizing.quantization.compressed_tensors import compressed_tensors
from raylane.deployments.sizing.quantization.formats import (
    BITSANDBYTES,
    DEFAULT_GROUP_SIZE,
    FP8,
    INT8,
    MXFP4,
    MXFP8,
    NVFP4,
    WeightFormat,
    grouped,
)
from raylane.deployments.sizing.quantization.gptq import auto_round, awq, gptq
from raylane.deployments.sizing.quantization.linears import Kind, Linear
from raylane.deployments.sizing.quantization.modelopt import modelopt
from raylane.deployments.sizing.quantization.quark import quark
from raylane.deployments.sizing.quantization.reading import Resolver, an_object, block_of, strings, whole
from raylane.deployments.sizing.quantization.skips import (
    UnsizedError,
    begins,
    component,
    skipped,
    skipped_exactly,
    suffix,
)


def resolver(declared: Mapping[str, Any]) -> Resolver:
    """The format of each matrix of a checkpoint that declares this. UnsizedError where it is not known."""
    method = str(declared.get("quant_method") or "").lower().replace("compressed_tensors", "compressed-tensors")
    if method not in _METHODS:
        raise UnsizedError(method or "without quant_method")
    return _METHODS[method](declared)


def _fp8(declared: Mapping[str, Any]) -> Resolver:
    """fp8.py: whole names; square blocks, which experts' may be made finer."""
    left = frozenset(strings(declared, "ignored_layers", "modules_to_not_convert"))
    size = declared.get("weight_block_size")
    stored = FP8 if size is None else replace(FP8, block=block_of(size), finer_experts=True)
    if declared.get("store_dtype") or declared.get("expert_dtype"):
        raise UnsizedError("fp8 with experts of another type")
    return _linears_and_experts(lambda linear: None if skipped_exactly(linear, left) else stored)


def _fbgemm(declared: Mapping[str, Any]) -> Resolver:
    """fbgemm_fp8.py: whole names; experts are not quantized."""
    left = frozenset(strings(declared, "modules_to_not_convert"))
    return _only(Kind.LINEAR, lambda linear: None if skipped_exactly(linear, left) else FP8)


def _bitsandbytes(declared: Mapping[str, Any]) -> Resolver:
    """transformers' and vLLM's plugin: whole components of the names."""
    left = strings(declared, "llm_int8_skip_modules", "modules_to_not_convert")
    stored = INT8 if declared.get("load_in_8bit") else BITSANDBYTES
    return _linears_and_experts(lambda linear: None if skipped(linear, left, component) else stored)


def _mxfp4(declared: Mapping[str, Any]) -> Resolver:
    """mxfp4.py: experts alone, whatever the list says; kernels pad their widths, so that no split cuts a group."""
    return _only(Kind.EXPERTS, lambda _: replace(MXFP4, group_size=None))


def _mxfp8(declared: Mapping[str, Any]) -> Resolver:
    """modelopt.py ModelOptMxFp8Config."""
    left = strings(declared, "ignored_layers")
    return _linears_and_experts(lambda linear: None if skipped_exactly(linear, left) else MXFP8)


def _fp_quant(declared: Mapping[str, Any]) -> Resolver:
    """fp_quant.py: ends of names; experts are not quantized."""
    left = strings(declared, "modules_to_not_convert")
    stored = {"mxfp4": MXFP4, "nvfp4": NVFP4}.get(str(declared.get("forward_dtype")))
    if stored is None:
        raise UnsizedError(f"fp_quant with forward_dtype {declared.get('forward_dtype')!r}")
    return _only(Kind.LINEAR, lambda linear: None if suffix(linear.name, left) else stored)


def _experts_int8(declared: Mapping[str, Any]) -> Resolver:
    """experts_int8.py: experts alone."""
    return _only(Kind.EXPERTS, lambda _: INT8)


def _torchao(declared: Mapping[str, Any]) -> Resolver:
    """torchao.py: whole components of names; a configuration for each name or pattern; experts are not quantized."""
    default = an_object(an_object(declared, "quant_type"), "default")
    of_names = an_object(an_object(default, "_data"), "module_fqn_to_config")
    left = (*strings(declared, "modules_to_not_convert"), *(name for name in of_names if of_names[name] is None))

    def resolve(linear: Linear) -> WeightFormat | None:
        if skipped(linear, left, component):
            return None
        return _torchao_format(_torchao_config(linear.name, of_names) if of_names else default)

    return _only(Kind.LINEAR, resolve)


def _torchao_config(name: str, of_names: Mapping[str, Any]) -> Mapping[str, Any] | None:
    patterns = (key for key in of_names if key.startswith("re:") and begins(f"(?:{key[3:]})$", name))
    key = name if name in of_names else next(patterns, "_default")
    found = of_names.get(key)
    return found if isinstance(found, Mapping) else None


def _torchao_format(config: Mapping[str, Any] | None) -> WeightFormat | None:
    if config is None:
        return None
    kind = str(config.get("_type"))
    if (kind.startswith("Float8") and kind.endswith("Float8WeightConfig")) or kind == "Float8WeightOnlyConfig":
        return FP8
    if kind in {"Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"}:
        return INT8
    if kind == "Int4WeightOnlyConfig":
        return grouped("int4", 4, whole(an_object(config, "_data"), "group_size", DEFAULT_GROUP_SIZE))
    raise UnsizedError(f"torchao {kind}")


def _only(kind: Kind, resolve: Resolver) -> Resolver:
    return lambda linear: resolve(linear) if linear.kind is kind else None


def _linears_and_experts(resolve: Resolver) -> Resolver:
    return lambda linear: resolve(linear) if linear.kind in {Kind.LINEAR, Kind.EXPERTS} else None


_METHODS: Mapping[str, Callable[[Mapping[str, Any]], Resolver]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "compressed-tensors": compressed_tensors,
    "modelopt": modelopt,
    "modelopt_fp4": modelopt,
    "modelopt_mxfp8": modelopt,
    "modelopt_mixed": modelopt,
    "gptq": gptq,
    "gptq_marlin": gptq,
    "auto_gptq": gptq,
    "awq": awq,
    "awq_marlin": awq,
    "auto_awq": awq,
    "auto-round": auto_round,
    "inc": auto_round,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _mxfp4,
    "gpt_oss_mxfp4": _mxfp4,
    "mxfp8": _mxfp8,
    "fp_quant": _fp_quant,
    "experts_int8": _experts_int8,
    "quark": quark,
    "torchao": _torchao,
}
