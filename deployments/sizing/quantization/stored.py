"""What a checkpoint's matrices take as it stores them, counted by kind and format. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylane.deployments.sizing.quantization.formats import WeightFormat
from raylane.deployments.sizing.quantization.linears import EXPERT, Kind, Linear
from raylane.deployments.sizing.quantization.methods import resolver
from raylane.deployments.sizing.quantization.reading import an_object, strings
from raylane.deployments.sizing.quantization.skips import UnsizedError

_OUTER, _INNER = "model.language_model.", "language_model.model."


@dataclass(frozen=True)
class Stored:
    """Matrices of one shape and format, of all layers together."""

    part: str
    inputs: int
    outputs: tuple[int, ...]
    by_rows: bool
    kind: Kind
    format: WeightFormat | None
    """None: in the model's own dtype."""
    weights: int

    @property
    def expert(self) -> bool:
        return self.part == EXPERT

    @property
    def in_layers(self) -> bool:
        return self.kind in {Kind.LINEAR, Kind.EXPERTS}

    def bytes(self, dtype_bytes: int) -> float:
        """Bytes of all of them, over all GPUs."""
        return self.weights * (dtype_bytes if self.format is None else self.format.bytes_per_weight)


def stored_matrices(declared: Mapping[str, Any], linears: Sequence[Linear]) -> tuple[Stored, ...]:
    """Every matrix in the format that vLLM gives it. UnsizedError with the reason where that is not known."""
    resolve = resolver(_as_vllm_names(declared, linears))
    if not all(linear.name for linear in linears) and names_parts(declared):
        raise UnsizedError("parts of it are stored in another way, and their names are not known for this architecture")
    counted: Counter[tuple[Linear, WeightFormat | None]] = Counter()
    for linear in linears:
        counted[_shape(linear), resolve(linear)] += linear.weights
    if not any(stored for _, stored in counted):
        raise UnsizedError(f"{declared.get('quant_method')} would leave all matrices as they are")
    return tuple(
        Stored(shape.part, shape.inputs, shape.outputs, shape.by_rows, shape.kind, stored, weights)
        for (shape, stored), weights in counted.items()
    )


_LISTS = ("ignored_layers", "modules_to_not_convert", "ignore", "exclude_modules", "exclude", "llm_int8_skip_modules")
_OF_NAMES = ("dynamic", "extra_config", "quantized_layers", "layer_quant_config", "module_fqn_to_config")
# Counted in 16 bits anyway: tables, head and routers; or not at all: towers of images and sound.
_ELSEWHERE = ("lm_head", "embed", "vision", "visual", "audio", "multi_modal", "mm_projector", "router")


def names_parts(declared: Mapping[str, Any]) -> bool:
    """Whether the checkpoint treats matrices of the layers by their names, so that their names have to be known."""
    places = (declared, an_object(declared, "quantization"))
    listed = [name for place in places for key in _LISTS for name in strings(place, key)]
    return any(place.get(key) for place in places for key in (*_OF_NAMES, "modules_in_block_to_quantize")) or any(
        not name.rstrip("$*").endswith((".gate", "_gate")) and not any(part in name for part in _ELSEWHERE)
        for name in listed
    )


def _shape(linear: Linear) -> Linear:
    """The matrix without what tells it from others of its shape."""
    return Linear("", linear.part, linear.inputs, linear.outputs, by_rows=linear.by_rows, kind=linear.kind)


def _as_vllm_names(declared: Mapping[str, Any], linears: Sequence[Linear]) -> Mapping[str, Any]:
    """The names of newer checkpoints of text and images as vLLM maps them (hf_to_vllm_mapper of its models)."""
    if not any(linear.name.startswith(_INNER) for linear in linears):
        return declared
    mapped: Mapping[str, Any] = _mapped(declared)
    return mapped


def _mapped(value: Any) -> Any:
    if isinstance(value, str):
        return _INNER + value.removeprefix(_OUTER) if value.startswith(_OUTER) else value
    if isinstance(value, Mapping):
        return {_mapped(key): _mapped(item) for key, item in value.items()}
    return [_mapped(item) for item in value] if isinstance(value, list) else value
