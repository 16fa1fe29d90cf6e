"""How many tokens per second one simulator process streams in real time, and how late it is while doing so.

    python -m studies.performance.simulator_capacity [seconds] [speed-up]

A speed-up of 10 shows what one process can hand out at most. Client and server share the machine; the server's own CPU
time is what is divided. A raw-socket client reads and counts events without parsing them. `replicas` is how many of
4,000 tokens/s one core would carry at that cost.
"""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import uvloop

PORT = 18517
HOST = "127.0.0.1"
SERVER = ("-m", "raylane.deployments.simulator.server", "--model-name", "m", "--port", str(PORT))
ENGINE = ("--gpu", "H200", "--max-model-len", "4096", "--max-num-seqs", "1024")
COLUMNS = ("clients", "tokens/s", "server CPU", "tokens/s per core", "replicas", "lag ms")


def cpu_s(pid: int) -> float:
    """CPU time the process has had, from the scheduler's own nanosecond count."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


async def one_client(stop_s: float, counts: list[int]) -> None:
    body = json.dumps({"prompt": [1] * 64, "max_tokens": 1000, "stream": True, "ignore_eos": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    while time.monotonic() < stop_s:
        reader, writer = await asyncio.open_connection(HOST, PORT)
        writer.write(request)
        while time.monotonic() < stop_s:
            data = await reader.read(65536)
            counts[0] += data.count(b"data: ")
            if not data or b"[DONE]" in data:
                break
        writer.close()


async def lag_ms() -> float:
    reader, writer = await asyncio.open_connection(HOST, PORT)
    writer.write(f"GET /metrics HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
    page = (await reader.read(-1)).decode()
    writer.close()
    line = next(line for line in page.splitlines() if line.startswith("raylane:simulator_lag_seconds"))
    return float(line.rsplit(" ", 1)[1]) * 1e3


async def measure(pid: int, clients: int, seconds: float) -> None:
    counts, begin_s, begin_cpu_s = [0], time.monotonic(), cpu_s(pid)
    tasks = [asyncio.create_task(one_client(begin_s + seconds, counts)) for _ in range(clients)]
    await asyncio.sleep(seconds * 0.9)
    late_ms = await lag_ms()
    await asyncio.gather(*tasks)
    rate, used = counts[0] / (time.monotonic() - begin_s), (cpu_s(pid) - begin_cpu_s) / seconds
    per_core = rate / used
    print(f"{clients:8d} {rate:12,.0f} {used:12.0%} {per_core:18,.0f} {per_core / 4000:10.1f} {late_ms:8.1f}")


async def measure_all(pid: int, seconds: float) -> None:
    for _ in range(100):
        try:
            _, writer = await asyncio.open_connection(HOST, PORT)
            writer.close()
            break
        except OSError:
            await asyncio.sleep(0.1)
    print("SIMULATED replica in real time")
    print("{:>8} {:>12} {:>12} {:>18} {:>10} {:>8}".format(*COLUMNS))
    for clients in (16, 64, 256):
        await measure(pid, clients, seconds)


def main(seconds: float, speedup: str) -> None:
    process = subprocess.Popen([sys.executable, *SERVER, *ENGINE, "--speedup", speedup], stderr=subprocess.DEVNULL)
    try:
        uvloop.run(measure_all(process.pid, seconds))
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 6.0, sys.argv[2] if len(sys.argv) > 2 else "1")
