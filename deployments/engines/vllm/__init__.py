"""vLLM: `vllm serve` for one replica."""
