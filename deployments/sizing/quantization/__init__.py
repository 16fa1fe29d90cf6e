"""How a checkpoint's matrices and KV cache are stored, judged as vLLM 0.29 to 0.32 judge it. Pure."""
