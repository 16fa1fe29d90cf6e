"""One request through the gateway: pick, send, pass on, try once more elsewhere if the engine dies before a byte."""

import time
from collections.abc import Callable
from dataclasses import replace

from aiohttp import web

from raylane.deployments.directory.directory import REPORT_EXPIRES_S
from raylane.deployments.directory.reports import Endpoint, ModelTraffic, Table
from raylane.deployments.gateway.asked import Asked, Unreachables
from raylane.deployments.gateway.body import read_body, wanted
from raylane.deployments.gateway.counters import Counters
from raylane.deployments.gateway.errors import refuse, unknown_model
from raylane.deployments.gateway.holding import Holding, HoldLimits
from raylane.deployments.gateway.metrics import GatewayMetrics
from raylane.deployments.gateway.reply import Writer, end_broken, response_like
from raylane.deployments.gateway.routing import NoPick, Pick
from raylane.deployments.gateway.routing import pick as pick_replica
from raylane.deployments.gateway.upstream import Head, Unreachable, Upstream, UpstreamError, UpstreamPool

PASSED_ON = ("content-type", "accept", "x-request-id", "traceparent", "tracestate")
MAX_TRIES = 2  # replicas that a request is sent to
LISTED_FOR_S = REPORT_EXPIRES_S + 2.0  # by then the directory has dropped a replica that is gone
LOOK_AGAIN_S = 1.0


class Relay:
    """Passes requests to replicas. Knows the table, counts what is open, owns the connections."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        limits: HoldLimits = HoldLimits(),  # noqa: B008 - frozen
        begun: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._pool = UpstreamPool()
        self._metrics = metrics
        self._holding = Holding(limits, begun)
        self._open: dict[str, int] = {}
        self._unreachable = Unreachables()
        self._turn = 0
        self._table = Table("", 0, False, (), ())
        self._counters: dict[str, Counters] = {}

    @property
    def models(self) -> tuple[str, ...]:
        return self._table.models

    @property
    def open_requests(self) -> int:
        return sum(self._open.values())

    def traffic(self) -> dict[str, ModelTraffic]:
        """Counters and gauges of each model now."""
        now_s, holding = time.monotonic(), self._holding
        return {
            model: counters.frozen(now_s, holding.held(model), holding.oldest_age_s(model))
            for model, counters in self._counters.items()
        }

    def apply(self, table: Table) -> None:
        """Go by this table from now on; requests that wait look again, in order."""
        self._table = table
        self._pool.keep_only(frozenset(endpoint.url for endpoint in table.endpoints))
        self._unreachable.keep_only(frozenset(endpoint.replica_id for endpoint in table.endpoints))
        self._holding.tell()

    def stop_holding(self) -> None:
        """Refuse those who wait, so that they ask another gateway."""
        self._holding.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one OpenAI POST. Client disconnects arrive as CancelledError and abort the engine's work."""
        body = await read_body(request)
        if isinstance(body, web.Response):
            return body
        asks = await wanted(body)
        if asks is None:
            return refuse(400, "the body must be JSON with a string 'model'", "invalid_request_error", None, "model")
        model = asks.model
        known = model in self.models
        counters = self._counters.setdefault(model, Counters()) if known else Counters()
        counters.received += 1
        counters.open += 1
        asked = Asked(request, model, body, asks.streamed, counters, time.monotonic())
        outcome = "cancelled"
        try:
            response, outcome = await self._relay(asked)
            return response
        finally:
            counters.finished(outcome, rejected=outcome == "503" and bool(asked.refusal))
            self._metrics.finished(model if known else "", outcome, time.monotonic() - asked.began_s)

    async def _relay(self, asked: Asked) -> tuple[web.StreamResponse, str]:
        """The response and its outcome: the status, or "cut" when the engine died after the first byte."""
        while len(asked.sent_to) < MAX_TRIES:
            picked = self._pick(asked)
            if picked is NoPick.NO_REPLICA:
                picked = await self._hold(asked)
            if isinstance(picked, NoPick):
                return self._no_answer(asked, picked)
            answer = await self._try(asked, picked)
            if answer is not None:
                return answer
            if picked.endpoint.replica_id in asked.sent_to and await self._must_give_up(asked, picked.endpoint):
                break
        return self._no_answer(asked, NoPick.NO_REPLICA)

    async def _try(self, asked: Asked, picked: Pick) -> tuple[web.StreamResponse, str] | None:
        """What this replica answered; None when it failed before the first byte."""
        endpoint = picked.endpoint
        self._open[endpoint.replica_id] = picked.open_requests + 1
        try:
            upstream, head = await self._ask(asked, endpoint)
            if head.status >= 500 and not asked.sent_to and self._another(asked, endpoint):
                upstream.abort()  # a dying engine says so itself; with no other to ask its answer is passed on
                raise UpstreamError(f"status {head.status}")
            self._metrics.first_byte(asked.model, time.monotonic() - asked.began_s)
            return await self._pass_on(asked.http, endpoint, upstream, head)
        except Unreachable as error:
            self._unreachable.remember(endpoint.replica_id)
            asked.failed(str(error), time.monotonic())
            asked.unreachable |= {endpoint.replica_id}
        except UpstreamError as error:
            asked.failed(str(error), time.monotonic())
            asked.sent_to |= {endpoint.replica_id}
        finally:
            self._close_one(endpoint.replica_id)
        self._metrics.retried(asked.model)
        return None

    async def _must_give_up(self, asked: Asked, endpoint: Endpoint) -> bool:
        """Whether there is no other replica and this one lives: then the request broke, not the engine."""
        if self._pick(asked) is not NoPick.NO_REPLICA or not self._holding.limits.timeout_s:
            return False
        if await self._pool.reachable(endpoint.url):
            return True
        self._unreachable.remember(endpoint.replica_id)
        return False

    async def _hold(self, asked: Asked) -> Pick | NoPick:
        """Wait for a replica that can take this request, in order of arrival; NO_REPLICA when none came in time."""
        place = self._holding.enter(asked.model, len(asked.body))
        if isinstance(place, str):
            asked.refusal = place
            return NoPick.NO_REPLICA
        try:
            while (picked := self._pick(asked)) is NoPick.NO_REPLICA and not self._holding.closed:
                left_s = asked.began_s + self._holding.limits.timeout_s - time.monotonic()
                if listed := self._lists(asked.model):  # and failed: until the directory drops it or it is back
                    since_s = max(asked.problem_s, self._unreachable.last_connected_s(asked.unreachable))
                    left_s = min(left_s, since_s + LISTED_FOR_S - time.monotonic())
                if left_s <= 0:
                    break
                await self._holding.news(place, min(left_s, LOOK_AGAIN_S) if listed else left_s)
            if picked is NoPick.NO_REPLICA:
                asked.refusal = self._holding.in_vain()
            return picked
        finally:
            self._holding.leave(place)
            self._metrics.held(asked.model, time.monotonic() - place.since_s)

    def _no_answer(self, asked: Asked, picked: Pick | NoPick) -> tuple[web.StreamResponse, str]:
        model = asked.model
        if asked.problem and (asked.sent_to or self._lists(model)):
            return refuse(502, f"model {model!r}: its engine failed: {asked.problem}", "engine_error", 502), "502"
        if picked is NoPick.UNKNOWN_MODEL:
            return unknown_model(model, self.models), "404"
        return refuse(503, f"model {model!r}: {asked.refusal}", "service_unavailable", 503), "503"

    def _pick(self, asked: Asked) -> Pick | NoPick:
        self._turn += 1
        away = self._unreachable.now()
        tried = asked.sent_to | (asked.unreachable & away) if away else asked.sent_to
        return pick_replica(asked.model, self._table.models, self._table.endpoints, self._open, tried, self._turn, away)

    def _lists(self, model: str) -> bool:
        return any(endpoint.model == model for endpoint in self._table.endpoints)

    def _another(self, asked: Asked, than: Endpoint) -> bool:
        others = replace(asked, sent_to=asked.sent_to | {than.replica_id})
        return isinstance(self._pick(others), Pick)

    def _close_one(self, replica_id: str) -> None:
        left = self._open[replica_id] - 1
        if left:
            self._open[replica_id] = left
        else:
            del self._open[replica_id]

    async def _ask(self, asked: Asked, endpoint: Endpoint) -> tuple[Upstream, Head]:
        """Send the request; a kept connection that the engine had closed meanwhile is replaced by a new one."""
        headers = f"host: {endpoint.replica_id}\r\nauthorization: Bearer {endpoint.api_key}\r\n" + "".join(
            f"{name}: {asked.http.headers[name]}\r\n" for name in PASSED_ON if name in asked.http.headers
        )
        method, path = asked.http.method.encode(), asked.http.path.encode()
        self._unreachable.knock(endpoint.replica_id)
        while True:
            upstream, new = await self._pool.connection(endpoint.url)
            self._unreachable.forget(endpoint.replica_id)
            if new:
                self._unreachable.connected(endpoint.replica_id)
            asked.sent(endpoint.replica_id)
            try:
                head = await upstream.send(method, path, headers.encode("utf-8", "surrogateescape"), asked.body)
                self._unreachable.connected(endpoint.replica_id)
                return upstream, head
            except UpstreamError:
                if new:
                    raise
            except BaseException:
                upstream.abort()
                raise
            finally:
                asked.answered(endpoint.replica_id)

    async def _pass_on(
        self, request: web.Request, endpoint: Endpoint, upstream: Upstream, head: Head
    ) -> tuple[web.StreamResponse, str]:
        response = response_like(request, head)
        try:
            await response.prepare(request)
            writer = Writer(request, upstream, chunked=response.chunked)
            try:
                await upstream.deliver_to(writer.write)
            except UpstreamError as error:
                await end_broken(response, writer, error)
                return response, "cut"
            await response.write_eof()
            return response, str(head.status)
        except ConnectionResetError:  # the client left; its handler's cancellation is on its way
            return response, "cancelled"
        finally:
            upstream.resume()  # it may have been paused for this client's sake
            self._pool.put_back(endpoint.url, upstream)
