"""Raw replies on disk while a case runs, so that even a killed run loses at most what was in the file buffer.

A file of entries, each: lengths (3 x uint32), a JSON header, chunk times (float64), chunk ends (int64), the bytes. An
entry that was being written when the process died is left out on reading.
"""

import json
import struct
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from raylane.benchmarks.records import RawReply, RequestRecord, read_reply
from raylane.benchmarks.sse import RawBody
from raylane.benchmarks.writing import WriteFailedError, failures_named

_LENGTHS = struct.Struct("<III")
_BUFFER_BYTES = 1 << 20


class Spool:
    """Appends the replies of one case to a file. Use as a context manager.

    What cannot be written (a full disk) raises WriteFailedError from the next `append` or `check`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failure: WriteFailedError | None = None

    def __enter__(self) -> Self:
        with failures_named(self._path):
            self._file = self._path.open("wb", buffering=_BUFFER_BYTES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # of the flush inside, which `check` has told
            self._file.close()

    def append(self, case: str, stream: str, model: str, reply: RawReply) -> None:
        """Write one reply (a microsecond or so: it lands in the file's buffer)."""
        self.check()
        header = json.dumps(
            [
                *(case, stream, model, reply.t_sched_s, reply.t_send_s, reply.t_end_s),
                *(reply.http_status, reply.error, reply.input_tokens, reply.output_tokens),
            ]
        ).encode()
        body = reply.body
        chunks = len(body.chunk_ends)
        lengths = _LENGTHS.pack(len(header), chunks, len(body.data))
        times, ends = array("d", body.chunk_times_s).tobytes(), array("q", body.chunk_ends).tobytes()
        try:
            for part in (lengths, header, times, ends, body.data):
                self._file.write(part)
        except OSError as error:
            self._broke(error)
            self.check()

    def flush(self) -> None:
        """Hand the buffer to the operating system."""
        try:
            self._file.flush()
        except OSError as error:
            self._broke(error)

    def check(self) -> None:
        """Raise WriteFailedError when something could not be written."""
        if self._failure is not None:
            raise self._failure

    def _broke(self, error: OSError) -> None:
        self._failure = WriteFailedError(f"{self._path}: cannot be written: {error.strerror}")


def read_spool(path: Path, secrets: Iterable[str] = ()) -> Iterator[RequestRecord]:
    """Parse every whole entry, in the order in which replies ended. `secrets` are taken out of error texts."""
    secrets = tuple(secrets)
    with path.open("rb") as file:
        while len(lengths := file.read(_LENGTHS.size)) == _LENGTHS.size:
            header_bytes, chunks, data_bytes = _LENGTHS.unpack(lengths)
            entry = file.read(header_bytes + 16 * chunks + data_bytes)
            if len(entry) < header_bytes + 16 * chunks + data_bytes:
                return
            yield _record(entry, header_bytes, chunks, secrets)


def _record(entry: bytes, header_bytes: int, chunks: int, secrets: Iterable[str]) -> RequestRecord:
    header = json.loads(entry[:header_bytes])
    times_end = header_bytes + 8 * chunks
    times = array("d", entry[header_bytes:times_end])
    ends = array("q", entry[times_end : times_end + 8 * chunks])
    body = RawBody(entry[times_end + 8 * chunks :], ends, times)
    case, stream, model, t_sched_s, t_send_s, t_end_s, status, error, input_tokens, output_tokens = header
    reply = RawReply(t_sched_s, t_send_s, t_end_s, status, error, input_tokens, output_tokens, body)
    return read_reply(reply, case, stream, model, secrets)
