"""SGLang: `python -m sglang.launch_server` for one replica."""
