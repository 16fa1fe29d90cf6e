"""The longest context a model's config.json allows, rotary scaling included. Pure."""

from collections.abc import Mapping

from raylane.deployments.sizing.config_json import ConfigJson

COUNTED_ALREADY = frozenset({"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})
"""Scalings after which max_position_embeddings is the scaled length. vLLM before 0.32 multiplied it again for YaRN."""


def longest_context(text: ConfigJson, model_type: str) -> int:
    """Longest context, as vLLM 0.32 takes it (vllm/config/model.py, _get_and_verify_max_len).

    A scaled rotary embedding stretches what the config says, except where it is counted already. It is the longest that
    can be asked for: of a LongRoPE model vLLM serves less by itself (the length before scaling).
    """
    positions, factor = text.whole("max_position_embeddings"), 1.0
    for rope in _rotary(text) if model_type != "gemma3_text" else ():
        kind = str(rope.values.get("rope_type", rope.values.get("type")))
        if kind not in COUNTED_ALREADY:
            factor = rope.number("factor", factor)
    return int(positions * factor)


def _rotary(text: ConfigJson) -> list[ConfigJson]:
    """The rotary embedding of all layers, or of each type of layer. transformers 5 writes it as `rope_parameters`.

    Where both keys are given, transformers takes the older one.
    """
    both = [text.inner(key) for key in ("rope_scaling", "rope_parameters")]
    rope = both[0] or both[1]
    if rope is None:
        return []
    if any(not isinstance(each, Mapping | None) for each in rope.values.values()):
        return [rope]
    return [inner for key in rope.values if (inner := rope.inner(key))]
