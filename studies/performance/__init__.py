"""Scripts that measure raylane itself; their tables are in docs/performance.md."""
