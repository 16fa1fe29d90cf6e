"""TensorRT-LLM behind the engine interface: its config, its server's command line, and building its engines."""
