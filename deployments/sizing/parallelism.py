"""Two ways to spread a model over several GPUs of a host, compared: tensor against pipeline parallelism. Pure."""

from dataclasses import dataclass, replace

from raylane.cluster.catalog import Accelerator
from raylane.deployments.sizing.fit import Fits, Refusal, check
from raylane.deployments.sizing.memory import EngineSettings
from raylane.deployments.sizing.model_facts import ModelFacts
from raylane.deployments.sizing.roofline import Ceiling, Link, ceiling


@dataclass(frozen=True)
class Split:
    """One way to use the GPUs, with its floors; `ceiling` is None when it does not fit."""

    name: str
    fit: Fits | Refusal
    ceiling: Ceiling | None


@dataclass(frozen=True)
class ParallelismComparison:
    """Tensor and pipeline parallelism over the same GPUs and links. `better` names one of the splits.

    They are TP alone, PP alone, and the settings' own where that is both at once.
    """

    link: Link
    splits: tuple[Split, ...]
    better: str | None
    reason: str


def compare_parallelism(
    facts: ModelFacts,
    gpu: Accelerator,
    settings: EngineSettings,
    link: Link,
    *,
    gpus: int = 2,
    batch: int = 32,
    input_tokens: int = 512,
    output_tokens: int = 256,
) -> ParallelismComparison:
    """Which split yields the most output tokens at this load, and at what time per token and to first token.

    Tensor parallelism halves the weights each GPU reads but adds up partial sums twice a layer over the link;
    pipeline parallelism sends activations once per stage but reads all of its layers for every micro-batch.
    """
    shapes = [(f"TP={gpus}", gpus, 1), (f"PP={gpus}", 1, gpus)]
    tp, pp = settings.tensor_parallel, settings.pipeline_parallel
    if tp > 1 and pp > 1 and settings.gpus == gpus:
        shapes.append((f"TP={tp} PP={pp}", tp, pp))
    splits = tuple(
        _split(
            name,
            facts,
            gpu,
            replace(settings, tensor_parallel=over_layers, pipeline_parallel=stages),
            link,
            (batch, input_tokens, output_tokens),
        )
        for name, over_layers, stages in shapes
    )
    usable = [split for split in splits if split.ceiling is not None]
    if not usable:
        return ParallelismComparison(link, splits, None, "no split fits")
    ranked = sorted(usable, key=_rate, reverse=True)
    return ParallelismComparison(link, splits, ranked[0].name, _reason(ranked, link))


def _split(
    name: str,
    facts: ModelFacts,
    gpu: Accelerator,
    settings: EngineSettings,
    link: Link,
    load: tuple[int, int, int],
) -> Split:
    found = check(facts, gpu, settings)
    if isinstance(found, Refusal):
        return Split(name, found, None)
    batch = min(load[0], max(1, found.largest_batch(load[1] + load[2])))
    top = ceiling(facts, gpu, settings, batch=batch, input_tokens=load[1], output_tokens=load[2], link=link)
    return Split(name, found, top)


def _rate(split: Split) -> float:
    return split.ceiling.output_tokens_per_s if split.ceiling else 0.0


def _reason(ranked: list[Split], link: Link) -> str:
    """The best split against the next one."""
    if len(ranked) == 1:
        return f"only {ranked[0].name} fits"
    best, other = ranked[:2]
    if best.ceiling is None or other.ceiling is None:
        raise AssertionError("usable splits have a ceiling")
    gain = best.ceiling.output_tokens_per_s / other.ceiling.output_tokens_per_s
    step_ms, other_step_ms = best.ceiling.decode_step_s * 1e3, other.ceiling.decode_step_s * 1e3
    prompt_ms, other_prompt_ms = best.ceiling.prefill_s * 1e3, other.ceiling.prefill_s * 1e3
    return (
        f"{best.name} yields at most {gain:.2f} times the tokens of {other.name} "
        f"over {link.bytes_per_s / 1e9:.0f} GB/s ({link.source}); time per token {step_ms:.1f} against "
        f"{other_step_ms:.1f} ms, prompt {prompt_ms:.0f} against {other_prompt_ms:.0f} ms"
    )
