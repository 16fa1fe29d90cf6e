"""One engine as a supervised child process: start, follow, end. Leaves no process behind, whoever dies first."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from raylane.cluster.errors import FailedError
from raylane.cluster.processes import end_processes_with
from raylane.cluster.proxies import without_proxy
from raylane.cluster.redact import redacted, secret_values

SUPERVISOR = Path(__file__).with_name("supervisor.py")
# In the environment of every process of an engine's tree. Engines rename their processes with setproctitle, which would
# overwrite the environment that /proc shows, unless SPT_NOENV is set.
MARK = "RAYLANE_ENGINE_OF"
GRACE_WHEN_ORPHANED_S = 1.0
FAILURE = re.compile(r"\b(ERROR|Error|died|Fatal|out of memory)\b|[a-z]Error:")
FIRST_ERRORS = 3


@dataclass(frozen=True)
class Launch:
    """What to start: the command line, what it adds to the environment, and where its output goes."""

    command: tuple[str, ...]
    env: dict[str, str]
    log_path: Path


class EngineFailed(FailedError):
    """The engine did not start, or died. The message ends with the last lines of its log."""


def log_tail(path: Path, lines: int = 25) -> str:
    """The last lines of a log file, and before them its first lines that name an error; empty when there is no file."""
    try:
        everything = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    early, late = everything[:-lines], everything[-lines:]
    first = [line for line in early if FAILURE.search(line)][:FIRST_ERRORS]
    return "\n".join([*first, "..." if first else "", *late]).strip()


def inherited_env() -> dict[str, str]:
    """This process's environment without what Ray put in for its own workers (one thread, a job id, GPU indices).

    Models are fetched through the proxy that it names; calls to this host go through none.
    """
    ours = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    found = {name: value for name, value in os.environ.items() if not name.startswith("RAY_") and name not in ours}
    return found | without_proxy(found)


class EngineProcess:
    """A running engine tree. `ended` is set when the engine or its supervisor is gone, for whatever reason."""

    def __init__(self, token: str, launch: Launch, cpus: tuple[int, ...] | None = None) -> None:
        """`token` marks its processes; `cpus` are those it may run on, None for all that this process may use."""
        self._token = token
        self._launch = launch
        self._cpus = cpus
        self._to_supervisor: int | None = None
        self._reader: asyncio.Task[None] | None = None
        self._started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.supervisor_pid: int | None = None
        self.exit_code: int | None = None
        self._problem = ""  # why the supervisor could not start anything
        self.ended = asyncio.Event()

    async def start(self, hold_fds: Sequence[int] = ()) -> int:
        """Start the tree; the engine's process id. The supervisor keeps `hold_fds` (lock files) open until it dies."""
        read_end, self._to_supervisor = os.pipe()
        status_end, write_end = os.pipe()
        env = {**inherited_env(), **self._launch.env, MARK: self._token, "SPT_NOENV": "1"}
        starter = subprocess.Popen(  # noqa: ASYNC220 - returns at once; waited for below
            [sys.executable, "-I", "-S", str(SUPERVISOR)],
            stdin=read_end,
            stdout=write_end,
            stderr=subprocess.DEVNULL,
            pass_fds=tuple(hold_fds),
        )
        os.close(read_end)
        os.close(write_end)
        spec = {
            "command": self._launch.command,
            "env": env,
            "log_path": str(self._launch.log_path),
            "grace_s": GRACE_WHEN_ORPHANED_S,
            "cpus": self._cpus,
        }
        self._say(json.dumps(spec))
        self._reader = asyncio.create_task(self._follow(status_end))
        await asyncio.to_thread(starter.wait)  # the first of its two forks ends at once
        return await self._started

    def _say(self, line: str) -> None:
        if self._to_supervisor is not None:
            with suppress(BrokenPipeError):
                os.write(self._to_supervisor, line.encode() + b"\n")

    async def _follow(self, status_end: int) -> None:
        """Read the supervisor's events until it is gone, then make sure that nothing of the tree is left."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(status_end, "rb", buffering=0)
        )
        try:
            while line := await reader.readline():
                event = json.loads(line)
                if event["event"] == "started":
                    self.supervisor_pid = event["supervisor_pid"]
                    if not self._started.done():  # a cancelled start cancels this too
                        self._started.set_result(event["engine_pid"])
                elif event["event"] == "failed":
                    self._problem = event["reason"]
                else:
                    self.exit_code = event["code"]
                    self.ended.set()
        finally:
            transport.close()
            self.ended.set()
            await asyncio.to_thread(end_processes_with, MARK, self._token, 0.0)
            if not self._started.done():
                self._started.set_exception(self.failure("did not start"))

    async def stop(self, grace_s: float) -> None:
        """End the tree: TERM, the grace, KILL. Returns when nothing is left."""
        self._say(f"stop {grace_s}")
        if self._reader is not None:
            await asyncio.shield(self._reader)
        if self._to_supervisor is not None:
            os.close(self._to_supervisor)
            self._to_supervisor = None

    def failure(self, what: str) -> EngineFailed:
        """An error with the engine's exit status and the end of its log."""
        status = "" if self.exit_code is None else f" (exit status {self.exit_code})"
        status += f": {self._problem}" if self._problem else ""
        log = self._launch.log_path
        end = redacted(log_tail(log), secret_values(self._launch.env))
        return EngineFailed(f"engine {what}{status}; log {log}:\n{end}")
