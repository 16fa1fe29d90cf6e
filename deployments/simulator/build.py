"""From a model, a GPU and engine settings to the engine the simulator runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylane.cluster.catalog import Accelerator
from raylane.cluster.errors import UsageError
from raylane.deployments.config.builtin import PREFIX, builtin_config
from raylane.deployments.simulator.constants import constants_for
from raylane.deployments.simulator.replica import EngineModel
from raylane.deployments.simulator.request import Limits
from raylane.deployments.simulator.step_model import StepConstants, step_model
from raylane.deployments.sizing.families.params_json import config_of_params
from raylane.deployments.sizing.fit import EngineSettings, Fits, fit
from raylane.deployments.sizing.kv_layout import BLOCK_TOKENS
from raylane.deployments.sizing.model_facts import ModelFacts, model_facts
from raylane.deployments.sizing.model_files import CONFIG, PARAMS, describing_file
from raylane.deployments.sizing.quantization.modelopt import MIXED
from raylane.deployments.sizing.roofline import Link, assumed_link


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


def engine_for(
    source: str,
    gpu: Accelerator,
    settings: EngineSettings,
    link: Link | None = None,
    *,
    prefix_caching: bool = True,
    slowdown: float = 1.0,
) -> EngineModel:
    """The simulated engine of a model that has a config.json, with the shipped constants of the card."""
    facts = read_model_facts(source)
    constants = constants_for(gpu).constants()
    return build_engine(facts, gpu, settings, constants, link, prefix_caching=prefix_caching, slowdown=slowdown)


def build_engine(
    facts: ModelFacts,
    gpu: Accelerator,
    settings: EngineSettings,
    constants: StepConstants,
    link: Link | None = None,
    *,
    prefix_caching: bool = True,
    batching_window_s: float = 0.0,
    slowdown: float = 1.0,
) -> EngineModel:
    """The simulated engine. UsageError with the reason and the nearest settings when the model does not fit."""
    found = fit(facts, gpu, settings)
    if not isinstance(found, Fits):
        nearest = "; ".join(item.change for item in found.nearest) or "none"
        raise UsageError(f"does not fit on {gpu.name}: {found.reason}. Nearest that fits: {nearest}")
    full = found.settings
    limits = Limits(
        kv_tokens=-(-found.kv_tokens // BLOCK_TOKENS) * BLOCK_TOKENS,
        max_num_seqs=full.max_num_seqs or 1,
        max_num_batched_tokens=full.max_num_batched_tokens or 1,
        max_model_len=full.max_model_len or found.kv_tokens,
        prefix_caching=prefix_caching,
    )
    steps = step_model(facts, gpu, full, constants, link or assumed_link(gpu), slowdown=slowdown)
    return EngineModel(limits, steps, batching_window_s)
