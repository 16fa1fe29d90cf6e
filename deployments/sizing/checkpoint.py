"""What a model's folder or file says about it: its config.json, and its size."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylane.cluster.errors import UsageError
from raylane.deployments.config.builtin import PREFIX, builtin_config
from raylane.deployments.config.model_files import CONFIG, PARAMS, describing_file
from raylane.deployments.sizing.families.params_json import config_of_params
from raylane.deployments.sizing.model_facts import ModelFacts, model_facts
from raylane.deployments.sizing.quantization.modelopt import MIXED


def read_model_config(source: str) -> Mapping[str, Any]:
    """The config.json of a builtin, a folder or a file. Hub names are not looked up: pass their config.json.

    A folder that has none but Mistral's params.json is read by that. Older checkpoints of NVIDIA's ModelOpt name their
    format in hf_quant_config.json beside it; it is read as well.
    """
    if source.startswith(PREFIX):
        return builtin_config(source)
    file = _file(source)
    if file.name == PARAMS:
        return config_of_params(_read_object(file, source, PARAMS), str(file))
    found = _read_object(file, source, CONFIG)
    beside, own = file.with_name("hf_quant_config.json"), found.get("quantization_config")
    layers_elsewhere = isinstance(own, dict) and own.get("quant_algo") == MIXED and "quantized_layers" not in own
    if file.name != CONFIG or (own and not layers_elsewhere) or not beside.is_file():
        return found
    declared = _read_object(beside, source, beside.name).get("quantization")
    of_file = declared if isinstance(declared, dict) else {}
    if own:
        return {**found, "quantization_config": {**of_file, **own}}
    return {**found, "quantization_config": {"quant_method": "modelopt", "quantization": of_file}}


def read_model_facts(source: str) -> ModelFacts:
    """The size of a builtin, folder or file. What is wrong in a config.json is a UsageError that names the file."""
    origin = source if source.startswith(PREFIX) else str(_file(source))
    return model_facts(read_model_config(source), origin)


def _file(source: str) -> Path:
    path = Path(source)
    return (describing_file(path) or path / CONFIG) if path.is_dir() else path


def _read_object(file: Path, source: str, kind: str) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{source}: no readable {kind} there: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{file}: a {kind} holds an object, not {type(found).__name__}")
    return found
