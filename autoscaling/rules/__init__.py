"""Rules to compare raylane's own with: each decides for one model, from the same observations. Start at registry.py."""
