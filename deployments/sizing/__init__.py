"""Does a model fit and how fast is it at most: in go a checkpoint's config.json, a card and settings, out come bytes,
tokens and ceilings. Pure but for reading files."""
