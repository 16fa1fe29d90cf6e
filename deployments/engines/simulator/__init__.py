"""The simulator as an engine kind."""
