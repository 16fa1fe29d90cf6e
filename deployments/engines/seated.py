"""One engine on its seat: its process and its client, from the start to the first token, until it is sick or idle."""

import asyncio
import logging
import os
import time
from contextlib import suppress

import aiohttp

from raylane.cluster.addresses import in_url
from raylane.cluster.affinity import cpu_list
from raylane.deployments.engines.base import Engine, Seat
from raylane.deployments.engines.client import EngineClient
from raylane.deployments.engines.load import EngineLoad
from raylane.deployments.engines.process import EngineProcess
from raylane.deployments.engines.progress import Progress, Stillness, follow, sickness, still
from raylane.deployments.slo import SloLimits

log = logging.getLogger("raylane.replica")

HEALTH_EVERY_S = 0.5
HEALTH_TIMEOUT_S = 5.0
SILENT_FOR_S = 30.0  # a server that answers /health this late is taken for dead
PROBE_AFTER_IDLE_S = 30.0  # an idle engine proves itself by a token this often
STALLED_FOR_S = 120.0  # requests running, no token for this long: the engine hangs
TOKEN_TIMEOUT_S = 300.0  # the first token may wait for a compilation


class SeatedEngine:
    """An engine where it was told to sit: start(), then until_sick(), until_idle() and load(), at last stop()."""

    def __init__(
        self,
        replica_id: str,
        model: str,
        engine: Engine,
        seat: Seat,
        cpus: tuple[int, ...] | None = None,
    ) -> None:
        self.seat = seat
        self.url = f"http://{in_url(seat.host)}:{seat.port}"
        self.pid: int | None = None
        self.ready = False  # it has generated a token
        self.load = EngineLoad()  # as last read
        self.limits: SloLimits | None = None  # what misses are counted against
        self._engine = engine
        self._process = EngineProcess(replica_id, engine.launch(seat), cpus)
        self._client = EngineClient(self.url, seat.api_key, model)
        self._stillness: Stillness | None = None
        self._progress: Progress | None = None

    async def start(self, lock_fds: tuple[int, ...], limit_s: float) -> None:
        """Start it and wait for its first token. Raises EngineFailed with the end of its log."""
        self.pid = await self._process.start(lock_fds)
        await self._until_first_token(limit_s)
        self.ready = True

    async def _until_first_token(self, limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        while not self._process.ended.is_set():
            if time.monotonic() > deadline_s:
                raise self._process.failure(f"gave no token within {limit_s:.0f} s")
            with suppress(aiohttp.ClientError, TimeoutError):
                if await self._client.health(HEALTH_TIMEOUT_S):
                    await self._check_door()
                    await self._first_token(min(TOKEN_TIMEOUT_S, max(0.0, deadline_s - time.monotonic())))
                    return
            await asyncio.sleep(0.2)
        raise self._process.failure("ended before it was ready")

    async def _check_door(self) -> None:
        """Raises EngineFailed when the engine serves whoever reaches its port."""
        if await self._client.open_to_strangers(HEALTH_TIMEOUT_S):
            raise self._process.failure("answers requests that do not carry its key, so it is not used")

    async def _first_token(self, limit_s: float) -> None:
        token = asyncio.create_task(self._client.generate_token(limit_s))
        ended = asyncio.create_task(self._process.ended.wait())
        await asyncio.wait({token, ended}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not token.done():
            token.cancel()
            raise self._process.failure("ended before its first token")
        try:
            token.result()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._process.failure(f"could not generate a token ({error or 'time limit'})") from error

    def cpus(self) -> str | None:
        """The CPUs that the engine may run on, as 0-3,8; None once it is gone."""
        try:
            return cpu_list(os.sched_getaffinity(self.pid)) if self.pid is not None else None
        except OSError:
            return None

    async def observe(self) -> None:
        """Read the engine's load, and note whether it gets on with its work."""
        load, now_s = await self._read_load(), time.monotonic()
        self.load = load
        self._stillness = still(self._stillness, load, now_s)
        self._progress = follow(self._progress, load, now_s)

    @property
    def sick(self) -> str | None:
        """Why it does not get on with the requests that wait; None while it does."""
        return None if self._progress is None else sickness(self._progress, time.monotonic())

    async def _read_load(self) -> EngineLoad:
        try:
            return await self._client.load(self._engine.read_load, HEALTH_TIMEOUT_S, self.limits)
        except (aiohttp.ClientError, TimeoutError):
            return EngineLoad()
        except Exception:  # an edge: nothing that stands on a page is a reason to end an engine
            log.exception("the load of the engine at %s cannot be read", self.url)
            return EngineLoad()

    async def until_sick(self) -> str:
        """Returns when the engine is dead or as good as dead, and why."""
        well_s = proven_s = time.monotonic()
        refused = tokenless = 0
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.ended.wait(), HEALTH_EVERY_S)
                return str(self._process.failure("died"))
            try:
                if not await self._client.health(HEALTH_TIMEOUT_S):
                    return str(self._process.failure("says it is not well"))
                well_s, refused = time.monotonic(), 0
                if self.load.running == 0 and well_s - proven_s > PROBE_AFTER_IDLE_S:
                    proven_s = well_s
                    problem = await self._token_problem()
                    tokenless = tokenless + 1 if problem else 0
                    if tokenless >= 2:
                        return str(self._process.failure(f"says it is well and gives no token ({problem})"))
                    well_s = time.monotonic()
            except TimeoutError:
                pass
            except aiohttp.ClientError as error:
                refused += 1
                if refused >= 2:
                    return str(self._process.failure(f"does not answer ({error})"))
            if time.monotonic() - well_s > SILENT_FOR_S:
                return str(self._process.failure(f"has been silent for {SILENT_FOR_S:.0f} s"))
            if self._stillness is not None and self._stillness.still_s > STALLED_FOR_S:
                return str(self._process.failure(f"has requests and gave no token for {STALLED_FOR_S:.0f} s"))

    async def _token_problem(self) -> str | None:
        try:
            await self._client.generate_token(STALLED_FOR_S)
        except TimeoutError:
            return f"time limit of {STALLED_FOR_S:.0f} s"
        except aiohttp.ClientError as error:
            return str(error)
        return None

    async def until_idle(self, limit_s: float) -> None:
        """Wait until the engine said three times in a row that it has nothing left, or is gone, at most `limit_s`."""
        deadline_s = time.monotonic() + limit_s
        calm = 0
        while calm < 3 and not self._process.ended.is_set() and time.monotonic() < deadline_s:
            load = await self._read_load()
            calm = calm + 1 if (load.waiting, load.running) == (0, 0) else 0
            await asyncio.sleep(0.2)

    async def stop(self, grace_s: float) -> None:
        """End the engine's whole tree; returns when nothing of it is left."""
        self.ready = False
        await self._process.stop(grace_s)
        await self._client.close()
