"""Talks to one engine over its OpenAI port: is it alive, does it generate, how loaded is it."""

import json
from collections.abc import Callable
from types import TracebackType
from typing import Self

import aiohttp

from raylane.deployments.engines.load import EngineLoad
from raylane.deployments.slo import SloLimits


class EngineClient:
    """A small HTTP client for one engine. Every call has a time limit; network errors pass as aiohttp.ClientError."""

    def __init__(self, url: str, api_key: str, model: str) -> None:
        self._url = url
        self._model = model
        self._session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {api_key}"})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        await self._session.close()

    async def health(self, timeout_s: float) -> bool:
        """True when the server says it is well, False when it says it is not."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self._session.get(f"{self._url}/health", timeout=timeout) as response:
            return response.status == 200

    async def open_to_strangers(self, timeout_s: float) -> bool:
        """Whether the engine answers a request without its key."""
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with (
            aiohttp.ClientSession() as stranger,
            stranger.get(f"{self._url}/health", timeout=timeout) as response,
        ):
            return response.status not in (401, 403)

    async def generate_token(self, timeout_s: float) -> None:
        """Have one token generated, the only proof that an engine works. Raises aiohttp.ClientError if it does not."""
        body = {"model": self._model, "prompt": "ready", "max_tokens": 1, "temperature": 0}
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with self._session.post(f"{self._url}/v1/completions", json=body, timeout=timeout) as response:
            text = await _text(response)
            if response.status != 200:
                raise aiohttp.ClientError(f"status {response.status}: {text[:500]}")
            try:
                tokens = json.loads(text)["usage"]["completion_tokens"]
            except (ValueError, KeyError, TypeError, RecursionError):
                tokens = None
            if tokens != 1:
                raise aiohttp.ClientError(f"no token came: {text[:500]}")

    async def load(
        self, read: Callable[[str, SloLimits | None], EngineLoad], timeout_s: float, limits: SloLimits | None = None
    ) -> EngineLoad:
        """The engine's load now as its kind reads it, all None under any status but 200."""
        async with self._session.get(
            f"{self._url}/metrics", timeout=aiohttp.ClientTimeout(total=timeout_s)
        ) as response:
            return read(await _text(response), limits) if response.status == 200 else EngineLoad()


async def _text(response: aiohttp.ClientResponse) -> str:
    """The body, whatever bytes it has and whatever charset it claims."""
    return (await response.read()).decode("utf-8", "replace")
