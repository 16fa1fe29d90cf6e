"""The language part of a model's config.json, and what of the model is left out with it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raylane.cluster.errors import UsageError
from raylane.deployments.sizing.config_json import ConfigJson
from raylane.deployments.sizing.families.family import Family
from raylane.deployments.sizing.families.registry import FAMILIES, UNSIZED, WRAPPED
from raylane.deployments.sizing.families.shape import EXPERT_COUNTS

LANGUAGE_KEYS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Where multimodal configs keep their language part."""
TOWERS: Mapping[str, str] = {
    "vision_config": "the vision tower",
    "vision_tower": "the vision tower",
    "vision_encoder": "the vision tower",
    "visual": "the vision tower",
    "audio_config": "the audio tower",
    "talker_config": "the part that speaks",
    "token2wav_config": "the part that speaks",
}
GUESSING_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")
_STATE_KEYS = ("layers_block_type", "hybrid_override_pattern", "ssm_cfg", "linear_attn_config", "attn_type_list")
_STATE_PREFIXES = ("mamba_", "linear_num_", "linear_key_", "conv_L_cache")
_OTHER_BLOCKS = ("block_configs", "per_layer_config")
_GENERATES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


@dataclass(frozen=True)
class LanguagePart:
    """The part that is counted, its family, and what is not."""

    values: Mapping[str, Any]
    model_type: str
    family: Family
    notes: tuple[str, ...]
    guessing_layers: int
    """Layers for multi-token prediction."""


def language_part(config: Mapping[str, Any], origin: str) -> LanguagePart:
    """The language part of a config. UsageError, with the reason, for one that nothing here can count."""
    left_out: list[str] = []
    part, declared = config, str(config.get("model_type", ""))
    while declared not in FAMILIES or _nested(part, origin) is not None:
        left_out += [what for key, what in TOWERS.items() if part.get(key)]
        inner = _nested(part, origin)
        if inner is None:
            raise _unknown(declared, origin)
        part, declared = inner, str(inner.get("model_type") or WRAPPED.get(declared, declared))
    left_out += [what for key, what in TOWERS.items() if part.get(key)]
    family = FAMILIES[declared]
    _refuse_what_is_not_counted(part, declared, family, origin)
    notes = [f"{what} is not counted" for what in dict.fromkeys(left_out)]
    key = ConfigJson(part, origin).key_of(GUESSING_LAYERS)
    guessing = ConfigJson(part, origin).whole(key) if part.get(key) else 0
    return LanguagePart(part, declared, family, (*notes, *_notes(config, guessing)), guessing)


def _nested(part: Mapping[str, Any], origin: str) -> Mapping[str, Any] | None:
    found = (ConfigJson(part, origin).inner(key) for key in LANGUAGE_KEYS)
    return next((each.values for each in found if each is not None), None)


def _unknown(declared: str, origin: str) -> UsageError:
    if declared in WRAPPED:
        return UsageError(f"{origin}: text_config: required key is missing")
    if declared in UNSIZED:
        return UsageError(f"{origin}: model_type: {declared!r} cannot be sized: {UNSIZED[declared]}")
    known = ", ".join(sorted({*FAMILIES, *WRAPPED}))
    return UsageError(f"{origin}: model_type: {declared!r} is not an architecture that can be sized (known: {known})")


def _refuse_what_is_not_counted(part: Mapping[str, Any], declared: str, family: Family, origin: str) -> None:
    """UsageError where the config tells of weights or caches that this family is not known to have."""

    def cannot(key: str, what: str) -> UsageError:
        return UsageError(f"{origin}: {key}: {what} of {declared!r} cannot be sized")

    for key in part:
        if part[key] and (key in _STATE_KEYS or key.startswith(_STATE_PREFIXES)):
            raise cannot(key, "layers that keep states instead of a KV cache")
        if part[key] and key in _OTHER_BLOCKS:
            raise cannot(key, "layers that differ from each other")
    for key in EXPERT_COUNTS if family.experts is None else ():
        if part.get(key) not in (None, 0, 1):
            raise cannot(key, "experts")
    if part.get("kv_lora_rank") and not family.latent:
        raise cannot("kv_lora_rank", "a latent cache")
    if part.get("is_encoder_decoder") or part.get("add_cross_attention"):
        raise cannot("is_encoder_decoder", "cross-attention")
    if part.get("is_causal") is False or part.get("use_bidirectional_attention") in (True, "all"):
        raise cannot("is_causal", "an encoder without a KV cache")


def _notes(config: Mapping[str, Any], guessing_layers: int) -> list[str]:
    notes = []
    if guessing_layers:
        notes.append("layers for multi-token prediction count only as a draft (method `mtp`), as an engine loads them")
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""
    if name and not name.endswith(_GENERATES):
        notes.append(f"{name} is counted like a model that generates text, with its KV cache and output head")
    return notes
