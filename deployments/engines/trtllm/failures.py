"""Why a step of a build failed, read out of what it printed. Pure."""

import re

GPU_MEMORY = "out of GPU memory"
# What PyTorch, TensorRT, CUDA, the kernel, transformers and TensorRT-LLM print; the first that is found is the reason.
REASONS = (
    (r"cuda out of memory|OutOfMemoryError|cuda error: out of memory|cudaErrorMemoryAllocation", GPU_MEMORY),
    (r"cuda runtime \(out of memory\)|OutOfMemory\b|insufficient memory on gpu", GPU_MEMORY),
    (r"std::bad_alloc|Cannot allocate memory|\bMemoryError\b", "out of host memory: the weights pass through it"),
    (r"no space left on device", "the disk is full: checkpoint and engine need room"),
    (r"unsupported model architecture|unsupported quantization format", "TensorRT-LLM does not support this model so"),
    (
        r"chat_template is not set|no chat template",
        "the model has no chat template: give prompts as text (`prompt`), not as `messages`",
    ),
    (r"ModuleNotFoundError|ImportError", "a package is missing beside TensorRT-LLM"),
    (
        r"no CUDA-capable device|CUDA driver version is insufficient|no GPU devices? found|GPU is required for",
        "no usable GPU",
    ),
)


def explain_failure(code: int, output: str, less_memory: str) -> str:
    """One line: what went wrong, or the exit status where nothing is recognised."""
    for pattern, reason in REASONS:
        if re.search(pattern, output, re.IGNORECASE):
            return f"{reason}: {less_memory}" if reason == GPU_MEMORY else reason
    if code == -9:
        return "killed (signal 9), most likely by the kernel for want of host memory"
    return f"ended by signal {-code}" if code < 0 else f"ended with exit status {code}"
