"""Prices, cost per token, return on a migration, waste."""
