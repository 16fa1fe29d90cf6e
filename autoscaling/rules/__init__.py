"""The rules: each proposes replicas for one model by itself, from the same observations. Start at registry.py."""
