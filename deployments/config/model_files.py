"""Which file of a model's folder describes the model."""

from pathlib import Path

CONFIG, PARAMS = "config.json", "params.json"


def describing_file(folder: Path) -> Path | None:
    """The folder's config.json, else Mistral's params.json; None where it has neither."""
    return next((folder / name for name in (CONFIG, PARAMS) if (folder / name).is_file()), None)
