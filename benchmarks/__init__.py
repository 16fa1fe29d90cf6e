"""Load against OpenAI-compatible endpoints: plan in, run folder out, and the reports read from it."""

from raylane.benchmarks.run_folder import Run, load_run

__all__ = ["Run", "load_run"]
