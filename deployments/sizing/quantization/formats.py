"""Weight formats: bytes of a weight, the arithmetic they run in, and what tensor parallelism may not cut. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

DEFAULT_GROUP_SIZE = 128  # of AWQ and GPTQ checkpoints, unless they say otherwise
NO_GROUPS = -1
SMALLEST_EXPERT_BLOCK = 32


class Compute(StrEnum):
    """The arithmetic a weight format runs in."""

    HALF = "16-bit"
    FP8 = "fp8"
    INT8 = "int8"


@dataclass(frozen=True)
class WeightFormat:
    """One way to store a matrix. Norms, routers and, but for the rare format, embeddings and head stay in the dtype."""

    name: str
    bytes_per_weight: float
    compute: Compute
    group_size: int | None = None
    """Weights of a row that share a scale, which tensor parallelism must not split; None without groups."""
    block: tuple[int, int] | None = None
    """Outputs and inputs of the square of weights that shares a scale; None without blocks."""
    finer_experts: bool = False
    """Whether vLLM makes groups or blocks of routed experts smaller until a GPU's share is whole, down to 32."""
    strict_columns: bool = False
    """Whether vLLM also refuses a GPU's share of outputs that is no multiple of the block."""
    experts_only: bool = False
    """Whether everything but routed experts stays in the model's dtype."""

    @property
    def expert_group_size(self) -> int | None:
        """The same of routed experts, where the format's may be made finer."""
        if self.group_size is None or not self.finer_experts:
            return self.group_size
        return min(self.group_size, SMALLEST_EXPERT_BLOCK)


def grouped(name: str, bits: int, group_size: int, *, zero_points: bool = True, finer: bool = False) -> WeightFormat:
    """Integers of `bits` with a 16-bit scale and, if asymmetric, a zero point of as many bits for each group."""
    per_group = 2 + (bits / 8 if zero_points else 0)
    if group_size == NO_GROUPS:
        return WeightFormat(name, bits / 8, Compute.HALF)
    size = bits / 8 + per_group / group_size
    return WeightFormat(name, size, Compute.HALF, group_size=group_size, finer_experts=finer)


FP8 = WeightFormat("fp8", 1, Compute.FP8)
INT8 = WeightFormat("int8", 1, Compute.INT8)
BITSANDBYTES = WeightFormat("bitsandbytes", 0.5 + 4 / 64, Compute.HALF)
# 4-bit floats: one FP8 scale for 16 weights, one 8-bit exponent for 32. Cards before Blackwell compute them in 16 bits.
NVFP4 = WeightFormat("nvfp4", 0.5 + 1 / 16, Compute.HALF, group_size=16)
MXFP4 = WeightFormat("mxfp4", 0.5 + 1 / 32, Compute.HALF, group_size=32)
MXFP8 = WeightFormat("mxfp8", 1 + 1 / 32, Compute.FP8, group_size=32)

_NAMED: Mapping[str, WeightFormat] = {
    "fp8": FP8,
    "int8": INT8,
    "bitsandbytes": BITSANDBYTES,
    "nvfp4": NVFP4,
    "mxfp8": MXFP8,
    "experts_int8": replace(INT8, name="experts_int8", experts_only=True),
    "nvfp4_per_token": replace(NVFP4, name="nvfp4_per_token", experts_only=True),
}
_GROUPED = ("awq", "gptq", "int4")
_ALIASES = {
    "awq_marlin": "awq",
    "auto_awq": "awq",
    "gptq_marlin": "gptq",
    "auto_gptq": "gptq",
    "int4_awq": "awq",
    "w8a8": "int8",
    "fbgemm_fp8": "fp8",
    "fp8_per_tensor": "fp8",
    "fp8_per_block": "fp8",
    "fp8_per_channel": "fp8",
    "modelopt": "fp8",
    "modelopt_fp4": "nvfp4",
    "modelopt_mxfp8": "mxfp8",
    "int8_per_channel_weight_only": "experts_int8",
}
KNOWN = (*_NAMED, *_GROUPED, *_ALIASES)


def plain_name(name: str) -> str:
    """The format a name of vLLM or TensorRT-LLM stands for; the name itself where it is none of these."""
    return _ALIASES.get(name, name)


def named(name: str, group_size: int = DEFAULT_GROUP_SIZE) -> WeightFormat | None:
    """The format of that name for all matrices of a model; None for one that is not known here."""
    name = plain_name(name)
    if name in _GROUPED:
        return grouped(name, 4, group_size, finer=name != "int4")
    return _NAMED.get(name)
