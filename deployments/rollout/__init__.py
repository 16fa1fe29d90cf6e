"""From a config to what runs: in goes the new state, out come Serve's applications and what became of them."""
