"""Run a plan: probe, then every case in turn, and the folder with what came of it."""

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raylane.benchmarks.client import Clock, LoadClient
from raylane.benchmarks.declared import Window, output_tokens_of
from raylane.benchmarks.energy import window_energy
from raylane.benchmarks.environment import describe_environment
from raylane.benchmarks.gpu_sampler import GpuSample, GpuSampler
from raylane.benchmarks.load import CaseLoad, CaseTimes, Phase
from raylane.benchmarks.metrics import CaseFacts, StreamPlan, case_result
from raylane.benchmarks.plan import BenchmarkPlan, Case, Stream, refuse_credentials
from raylane.benchmarks.prompts import planned_requests
from raylane.benchmarks.records import RawReply, RequestRecord, read_reply
from raylane.benchmarks.results import CaseResult, RunResults
from raylane.benchmarks.run_folder import RunFolder
from raylane.benchmarks.spool import Spool, read_spool
from raylane.benchmarks.writing import WriteFailedError
from raylane.cluster.errors import FailedError, UsageError
from raylane.cluster.gpu_readings import GpuReader

_PROGRESS_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is; handed to `on_progress` about twice a second."""

    run_dir: Path
    case: str
    case_number: int
    cases: int
    phase: Phase
    window_elapsed_s: float
    window_s: float | None
    finished: int
    failed: int


OnProgress = Callable[[Progress], None]


async def run_plan(
    plan: BenchmarkPlan,
    out_dir: Path,
    *,
    engine_info: dict[str, Any] | None = None,
    simulated: bool = False,
    on_progress: OnProgress | None = None,
    gpu_reader: GpuReader | None = None,
) -> Path:
    """Run every case and return the run folder.

    `simulated` marks the run; it is also marked when a reply carries raylane's simulator header. `engine_info` is what
    the caller knows of the engines and goes into environment.json as it is.

    Raises UsageError when the address holds a password or the key cannot be used, and FailedError when the endpoint
    does not answer a one-token request for each stream; neither leaves a folder. A folder that can no longer be written
    is a FailedError that says what is in it. When cancelled (Ctrl-C under
    asyncio.run) it writes what it has, with `complete: false`, and raises CancelledError.
    """
    refuse_credentials(plan.base_url, "base_url")
    started_at, start_s = datetime.now(UTC), time.perf_counter()
    key, clock = api_key(plan), _clock_from(start_s)
    async with LoadClient(plan.base_url, key, plan.request_timeout_s, clock) as client:
        await probe(plan, client, _known(key))
        folder = RunFolder(out_dir, plan, started_at)
        run = _Run(plan, folder, started_at, lambda: simulated or client.simulated, on_progress, _known(key))
        try:
            run.folder.write_start(describe_environment(engine_info or {}), run.results(complete=False))
            if gpu_reader is None:
                await run.all_cases(client, clock, list)
            else:
                with GpuSampler(gpu_reader, clock) as sampler:
                    await run.all_cases(client, clock, sampler.samples)
        except WriteFailedError as error:
            raise FailedError(f"{error}; {folder.left()}") from error
    return run.folder.path


def _known(key: str | None) -> tuple[str, ...]:
    return () if key is None else (key,)


def api_key(plan: BenchmarkPlan) -> str | None:
    """The key from the environment variable that the plan names, without white space around it."""
    if plan.api_key_env is None:
        return None
    named = f"api_key_env: the environment variable {plan.api_key_env}"
    value = os.environ.get(plan.api_key_env)
    if value is None:
        raise UsageError(f"{named} is not set")
    key = value.strip()  # a key read from a file ends with a line end
    if not key:
        raise UsageError(f"{named} is empty")
    if not all(character.isprintable() and character <= "\xff" for character in key):
        raise UsageError(f"{named} holds characters that no HTTP header can carry")
    return key


async def probe(plan: BenchmarkPlan, client: LoadClient, secrets: Iterable[str] = ()) -> None:
    """One short request for each model and endpoint, so that a wrong name or port is told before the run."""
    wanted = {(stream.model, stream.endpoint): stream for case in plan.cases for stream in case.streams}
    for stream in wanted.values():
        short = stream.model_copy(update={"input_tokens": 4, "output_tokens": 1})
        request = next(planned_requests(short, plan.prompt_token_ids, plan.seed))
        replies: list[RawReply] = []
        await client.send(request, 0.0, replies.append)
        record = read_reply(replies[0], "probe", stream.label, stream.model, secrets)
        if record.error is not None:
            raise FailedError(f"{plan.base_url}: model {stream.model}: {record.error}")


def _clock_from(start_s: float) -> Clock:
    return lambda: time.perf_counter() - start_s


class _Run:
    """The cases done so far and the folder they are written to."""

    def __init__(
        self,
        plan: BenchmarkPlan,
        folder: RunFolder,
        started_at: datetime,
        simulated: Callable[[], bool],
        on_progress: OnProgress | None,
        secrets: tuple[str, ...],
    ) -> None:
        self.folder = folder
        self._secrets = secrets
        self._plan = plan
        self._started_at = started_at
        self._simulated = simulated
        self._on_progress = on_progress
        self._done: list[CaseResult] = []

    def results(self, complete: bool) -> RunResults:
        """What goes into results.json now."""
        return RunResults(
            run_id=self.folder.run_id,
            plan_name=self._plan.name,
            started_at=self._started_at.isoformat(timespec="milliseconds"),
            complete=complete,
            simulated=self._simulated(),
            cases=tuple(self._done),
        )

    async def all_cases(self, client: LoadClient, clock: Clock, samples: Callable[[], list[GpuSample]]) -> None:
        """Run and write one case after the other."""
        for case in self._plan.cases:
            await self._case(case, client, clock, samples)
        self.folder.write_results(self.results(complete=True))

    async def _case(self, case: Case, client: LoadClient, clock: Clock, samples: Callable[[], list[GpuSample]]) -> None:
        spool_path = self.folder.spool_path(case.name)
        complete = False
        with Spool(spool_path) as spool:

            def keep(stream: Stream, reply: RawReply) -> None:
                spool.append(case.name, stream.label, stream.model, reply)

            load = CaseLoad(self._plan, case, client, clock, keep)
            watch = asyncio.create_task(self._watch(case, load.times, clock, spool))
            try:
                await load.run()
                complete = True
            finally:
                watch.cancel()
                self._report(case, load.times, clock)
                spool.flush()
                spool.check()
                self._write_case(case, load.times, complete, spool_path, samples())

    def _write_case(
        self, case: Case, times: CaseTimes, complete: bool, spool_path: Path, samples: list[GpuSample]
    ) -> None:
        records = list(read_spool(spool_path, self._secrets))
        self.folder.write_requests(records)
        self.folder.write_gpu(samples)
        result = finished_case(self._plan, case, times, complete, records, samples)
        if result is not None:
            self._done.append(result)
        self.folder.write_results(self.results(complete=False))
        spool_path.unlink()

    async def _watch(self, case: Case, times: CaseTimes, clock: Clock, spool: Spool) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_PERIOD_S)
            spool.flush()
            self._report(case, times, clock)

    def _report(self, case: Case, times: CaseTimes, clock: Clock) -> None:
        if self._on_progress is None:
            return
        now_s = clock() if times.window_end_s is None else times.window_end_s
        self._on_progress(
            Progress(
                run_dir=self.folder.path,
                case=case.name,
                case_number=self._plan.cases.index(case) + 1,
                cases=len(self._plan.cases),
                phase=times.phase,
                window_elapsed_s=0.0 if times.window_start_s is None else now_s - times.window_start_s,
                window_s=case.duration_s,
                finished=times.finished,
                failed=times.failed,
            )
        )


def finished_case(
    plan: BenchmarkPlan,
    case: Case,
    times: CaseTimes,
    complete: bool,
    records: list[RequestRecord],
    samples: list[GpuSample],
) -> CaseResult | None:
    """Figures of a case, None when it was cut before its window opened. Pure."""
    if times.window_start_s is None or times.window_end_s is None or times.window_end_s <= times.window_start_s:
        return None
    window = Window(times.window_start_s, times.window_end_s)
    share = None if times.window_cpu_s is None else times.window_cpu_s / window.length_s
    facts = CaseFacts(case.name, window, complete, times.warmup_timed_out, share)
    plans = [StreamPlan(stream.label, stream.model, stream.slo, stream.ignore_eos) for stream in case.streams]
    tokens = output_tokens_of(records, window)
    return case_result(facts, records, plans, window_energy(samples, window, tokens), plan.seed)
