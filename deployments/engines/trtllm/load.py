"""TensorRT-LLM's load, off the JSON list of iterations that its /metrics is. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from raylane.deployments.engines.load import EngineLoad, whole
from raylane.deployments.engines.samples import number

WAITING, RUNNING = "numQueuedRequests", "numActiveRequests"
KV_CACHE, USED_BLOCKS, ALL_BLOCKS = "kvCacheStats", "usedNumBlocks", "maxNumBlocks"


def read_iterations(page: str) -> EngineLoad:
    """The load after the last iteration of the list. There are no token totals and no histograms: they stay None.

    An empty list is an idle engine: TensorRT-LLM waits two seconds for an iteration before it answers with one.
    """
    try:
        iterations = json.loads(page)
    except (ValueError, RecursionError):
        return EngineLoad()
    if iterations == []:
        return EngineLoad(waiting=0, running=0)
    last = iterations[-1] if isinstance(iterations, list) else None
    if not isinstance(last, dict):
        return EngineLoad()
    return EngineLoad(
        waiting=whole(number(last.get(WAITING))),
        running=whole(number(last.get(RUNNING))),
        kv_use=_kv_use(last.get(KV_CACHE)),
    )


def _kv_use(cache: Any) -> float | None:
    if not isinstance(cache, Mapping):
        return None
    used, blocks = number(cache.get(USED_BLOCKS)), number(cache.get(ALL_BLOCKS))
    return number(used / blocks) if used is not None and blocks else None
