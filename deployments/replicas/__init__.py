"""The life of one replica on its host: in goes a model's config, out come leased GPUs, a running engine, reports."""
