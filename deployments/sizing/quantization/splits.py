"""Whether tensor parallelism cuts the groups and blocks of quantized weights, as vLLM 0.29 to 0.32 judge it. Pure.

Blocks: utils/fp8_utils.py validate_fp8_block_shape; experts: oracle/fp8.py refine_fp8_moe_block_shape for `fp8`,
compressed_tensors_moe_w8a8_fp8.py for compressed-tensors. Groups: utils/marlin_utils.py, and moe_wna16.py for experts.
"""

import math
from collections.abc import Iterable

from raylane.deployments.sizing.quantization.formats import SMALLEST_EXPERT_BLOCK, WeightFormat
from raylane.deployments.sizing.quantization.linears import REPLICATED, Kind
from raylane.deployments.sizing.quantization.stored import Stored


def broken_split(stored: Iterable[Stored], tensor_parallel: int, kv_heads: int) -> str | None:
    """Why these matrices cannot be split over so many GPUs; None where they can."""
    reasons = (_broken(item, tensor_parallel, kv_heads) for item in stored)
    return next((reason for reason in reasons if reason is not None), None)


def broken_groups(part: str, width: int, tensor_parallel: int, form: WeightFormat, *, expert: bool) -> str | None:
    """Why inputs of that width cannot be split in whole groups; None where they can."""
    group = form.expert_group_size if expert else form.group_size
    if not group or tensor_parallel == 1 or width % (tensor_parallel * group) == 0:
        return None
    return _reason(part, width, tensor_parallel, f"quantization groups of {form.group_size} weights")


def _broken(item: Stored, tensor_parallel: int, kv_heads: int) -> str | None:
    form = item.format
    if form is None or not item.in_layers or item.inputs == 1:  # weights alone, see linears.anonymous
        return None
    width = item.outputs[0] if item.kind is Kind.EXPERTS else item.inputs
    if form.block is not None:
        return _broken_block(item, form, form.block, width, tensor_parallel, kv_heads)
    if item.kind is Kind.EXPERTS or item.by_rows:
        return broken_groups(item.part, width, tensor_parallel, form, expert=item.expert)
    return None


def _broken_block(
    item: Stored, form: WeightFormat, block: tuple[int, int], width: int, tensor_parallel: int, kv_heads: int
) -> str | None:
    rows, columns = block
    share = width / tensor_parallel
    cut = f"FP8 blocks of {rows} x {columns} weights"
    if item.kind is Kind.EXPERTS:
        if share % rows == 0 and (tensor_parallel == 1 or share % columns == 0):
            return None
        finest = math.gcd(rows, columns, item.inputs, int(share)) if share.is_integer() else 0
        if form.finer_experts and finest >= SMALLEST_EXPERT_BLOCK:
            return None
        return _reason(item.part, width, tensor_parallel, cut)
    if item.by_rows:
        broken = tensor_parallel > 1 and share % columns
        return _reason(item.part, width, tensor_parallel, cut) if broken else None
    if not form.strict_columns:
        return None
    widest = item.outputs if tensor_parallel > 1 else item.outputs[:-1]
    shares = zip(widest, _shares(item, tensor_parallel, kv_heads), strict=False)
    broken_width = next((output for output, own in shares if own % rows), None)
    return None if broken_width is None else _reason(item.part, broken_width, tensor_parallel, cut)


def _shares(item: Stored, tensor_parallel: int, kv_heads: int) -> tuple[float, ...]:
    """A GPU's outputs of each part; keys and values are repeated where there are fewer heads than GPUs."""
    if item.part == REPLICATED:
        return item.outputs
    if item.part != "attention":
        return tuple(output / tensor_parallel for output in item.outputs)
    queries, *others = item.outputs
    return (queries / tensor_parallel, *(output / min(tensor_parallel, kv_heads) for output in others))


def _reason(part: str, width: int, tensor_parallel: int, what: str) -> str:
    return (
        f"{part} of width {width} over {tensor_parallel} GPUs splits the {what} ({width / tensor_parallel:g} per GPU)"
    )
