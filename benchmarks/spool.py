"""Raw replies on disk while a case runs, so that even a killed run loses at most what was in the file buffer.

A file of entries, each: lengths (3 x uint32), a JSON header, chunk times (float64), chunk ends (int64), the bytes. An
entry that was being written when the process died is left out on reading.
"""

import json
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from raylane.benchmarks.records import RawReply, RequestRecord, read_reply
from raylane.benchmarks.sse import RawBody

_LENGTHS = struct.Struct("<III")
_BUFFER_BYTES = 1 << 20


class Spool:
    """Appends the replies of one case to a file. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._file = self._path.open("wb", buffering=_BUFFER_BYTES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, case: str, stream: str, model: str, reply: RawReply) -> None:
        """Write one reply (a microsecond or so: it lands in the file's buffer)."""
        header = json.dumps(
            [
                *(case, stream, model, reply.t_sched_s, reply.t_send_s, reply.t_end_s),
                *(reply.http_status, reply.error, reply.input_tokens, reply.output_tokens),
            ]
        ).encode()
        body = reply.body
        chunks = len(body.chunk_ends)
        self._file.write(_LENGTHS.pack(len(header), chunks, len(body.data)))
        self._file.write(header)
        self._file.write(array("d", body.chunk_times_s).tobytes())
        self._file.write(array("q", body.chunk_ends).tobytes())
        self._file.write(body.data)

    def flush(self) -> None:
        """Hand the buffer to the operating system."""
        self._file.flush()


def read_spool(path: Path) -> Iterator[RequestRecord]:
    """Parse every whole entry, in the order in which replies ended."""
    with path.open("rb") as file:
        while len(lengths := file.read(_LENGTHS.size)) == _LENGTHS.size:
            header_bytes, chunks, data_bytes = _LENGTHS.unpack(lengths)
            entry = file.read(header_bytes + 16 * chunks + data_bytes)
            if len(entry) < header_bytes + 16 * chunks + data_bytes:
                return
            yield _record(entry, header_bytes, chunks)


def _record(entry: bytes, header_bytes: int, chunks: int) -> RequestRecord:
    header = json.loads(entry[:header_bytes])
    times_end = header_bytes + 8 * chunks
    times = array("d", entry[header_bytes:times_end])
    ends = array("q", entry[times_end : times_end + 8 * chunks])
    body = RawBody(entry[times_end + 8 * chunks :], ends, times)
    case, stream, model, t_sched_s, t_send_s, t_end_s, status, error, input_tokens, output_tokens = header
    reply = RawReply(t_sched_s, t_send_s, t_end_s, status, error, input_tokens, output_tokens, body)
    return read_reply(reply, case, stream, model)
