"""Engines as child processes: how each kind is started, and what proves that it is ready."""
