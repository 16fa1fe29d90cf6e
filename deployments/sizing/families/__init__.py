"""How families of language models are built: what their config.json says about layers, experts and caches. Pure."""
