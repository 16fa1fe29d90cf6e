"""The deployment configs of the H200 proof, and tiny stand-ins for trying the scripts themselves on a CPU."""

from typing import Any

from raylane.deployments.config.deployment import DeploymentConfig

PORT = 8000
# vLLM's FlashInfer sampler compiles itself at first use, which needs a CUDA toolkit; the native sampler does not.
ENV = {"VLLM_USE_FLASHINFER_SAMPLER": "0"}
DUMMY = {"load_format": "dummy", "dtype": "bfloat16", "max_model_len": 8192, "enable_prefix_caching": False, "env": ENV}
EIGHT = {"source": "builtin:llama-3-8b-shape", "engine": {**DUMMY, "max_num_seqs": 256}}
SEVENTY = {"source": "builtin:llama-3-70b-shape", "engine": {**DUMMY, "max_num_seqs": 256}, "tensor_parallel": 2}
TINY = {
    "device": "cpu",
    "dtype": "float32",  # eager bfloat16 kernels of the CPU build end with SIGILL on some virtual machines
    "max_model_len": 1024,
    "max_num_seqs": 64,
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "env": {"OMP_NUM_THREADS": "1"},
}
SCALED = {
    "slo": {"ttft_ms": 1000, "ttft_ms_per_input_token": 0.25, "tpot_ms": 60},
    "cold_start_s": 90,
    "drain_timeout_s": 120,
}
# The rule's usual patience would not fit into ten minutes: it shrinks after 7.5 minutes and goes to zero after 10.
SCALING = {
    "policy": "slo",
    "decide_every_s": 5,
    "warm_up_s": 20,
    "knobs": {"hold_s": 30.0, "shrink_every_s": 10.0, "idle_s": 30.0, "shrink_band": 0.05},
}
# Sixteen requests in a batch, so that a load which two cores can carry needs two replicas.
SIMULATED = {"kind": "simulator", "max_num_seqs": 16, "max_model_len": 8192, "cold_start_s": 6.0}


def config(models: dict[str, dict[str, Any]], tiny: bool) -> DeploymentConfig:
    """A deployment config; `tiny` swaps every model for the tiny one on the CPU."""
    if tiny:
        models = {name: {**model, "source": "builtin:tiny-llama", "engine": TINY} for name, model in models.items()}
    return DeploymentConfig.model_validate({"models": models, "gateway": {"port": PORT}})


def scaled(tiny: bool, to_zero: bool = True) -> DeploymentConfig:
    """One 8B model between zero (or one) and two replicas; `tiny` simulates its engines."""
    engine = SIMULATED if tiny else {**DUMMY, "max_num_seqs": 256}
    model = {"source": "builtin:llama-3-8b-shape", "engine": engine, **SCALED}
    model["replicas"] = {"min": 0 if to_zero else 1, "max": 2}
    return DeploymentConfig.model_validate(
        {"models": {"llama-8b": model}, "gateway": {"port": PORT}, "scaling": SCALING}
    )


def eights(replicas: int) -> dict[str, dict[str, Any]]:
    return {"llama-8b": {**EIGHT, "replicas": {"min": replicas, "max": 4}}}


def mixed() -> dict[str, dict[str, Any]]:
    """Two single-GPU 8B replicas and one 70B replica on two GPUs."""
    return {**eights(2), "llama-70b": SEVENTY}


def links() -> dict[str, dict[str, Any]]:
    """The 70B twice: NCCL instead of the custom all-reduce, and NCCL through host memory instead of peer to peer."""
    no_custom = {**SEVENTY["engine"], "disable_custom_all_reduce": True}  # type: ignore[dict-item]
    no_peer = {**no_custom, "env": {**ENV, "NCCL_P2P_DISABLE": "1"}}
    return {
        "llama-70b-nccl": {**SEVENTY, "engine": no_custom},
        "llama-70b-no-p2p": {**SEVENTY, "engine": no_peer},
    }
