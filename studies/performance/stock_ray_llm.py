"""What stock ray.serve.llm adds to the bare engine: the same tiny model, the same load, alternating pairs.

    python -m studies.performance.stock_ray_llm [--pairs 9] [--out runs/perf] [--json FILE]

Stock is build_openai_app with its defaults on a local Ray; bare is the vLLM server as raylane starts it. Both engines
are up the whole time with the same settings and one thread each, and only one of them has work. Needs what ray[llm]
needs (vLLM of the version that this Ray asks for).
"""

import argparse
import json
import os
import secrets
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from raylane.cluster.local_ray import local_ray, use_a_token

use_a_token()

from raylane.benchmarks.pairs import Comparison, Load, Way, compare  # noqa: E402 - the token comes first
from raylane.cluster.allreduce import AllReduceSettings  # noqa: E402
from raylane.cluster.errors import FailedError  # noqa: E402
from raylane.cluster.processes import end_processes_with  # noqa: E402
from raylane.cluster.proxies import direct  # noqa: E402
from raylane.deployments.config.builtin import ensure_model  # noqa: E402
from raylane.deployments.config.deployment import ModelConfig  # noqa: E402
from raylane.deployments.engines.base import Seat  # noqa: E402
from raylane.deployments.engines.guard import KEY_VARIABLE  # noqa: E402
from raylane.deployments.engines.process import Launch, log_tail  # noqa: E402
from raylane.deployments.engines.vllm.engine import VllmEngine  # noqa: E402
from studies.performance.comparison import comparison_table  # noqa: E402
from studies.performance.gateway_overhead import ENGINE, LOADS  # noqa: E402

HOST = "127.0.0.1"
MODEL = "tiny"
SOURCE = "builtin:tiny-llama"
MARK = "RAYLANE_BARE_ENGINE"  # in the environment of every process of the bare engine
STARTS_WITHIN_S = 600.0
ENDS_WITHIN_S = 15.0
ENGINE_VARIABLES = (
    "OMP_NUM_THREADS",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_NO_USAGE_STATS",
    "HF_HUB_OFFLINE",
)


def bare_launch(folder: str, port: int, api_key: str, log_path: Path) -> Launch:
    """The command line and environment of the bare engine: what a replica of raylane starts."""
    seat = Seat(
        host=HOST,
        port=port,
        inner_ports=range(port + 1, port + 2),
        gpu_uuids=(),
        api_key=api_key,
        log_path=log_path,
        links=AllReduceSettings((), custom_all_reduce=True, reason="one process"),
    )
    model = ModelConfig.model_validate({"source": SOURCE, "engine": ENGINE})
    return VllmEngine(MODEL, model, folder).launch(seat)


@contextmanager
def bare_vllm(launch: Launch, port: int) -> Iterator[None]:
    """The bare engine, ready, until the context ends."""
    token = secrets.token_hex(8)
    # SPT_NOENV keeps the mark readable after the engine has renamed its processes.
    env = {**os.environ, **launch.env, MARK: token, "SPT_NOENV": "1"}
    with launch.log_path.open("wb") as log:
        process = subprocess.Popen(launch.command, env=env, stdout=log, stderr=subprocess.STDOUT)
    try:
        _until_healthy(f"http://{HOST}:{port}/health", process, launch)
        yield
    finally:
        process.terminate()
        end_processes_with(MARK, token, ENDS_WITHIN_S)
        process.wait()


def _until_healthy(url: str, process: subprocess.Popen[bytes], launch: Launch) -> None:
    deadline_s = time.monotonic() + STARTS_WITHIN_S
    headers = {"Authorization": f"Bearer {launch.env[KEY_VARIABLE]}"}
    asked = urllib.request.Request(url, headers=headers)  # noqa: S310 - our own engine
    while process.poll() is None and time.monotonic() < deadline_s:
        with suppress(OSError), direct().open(asked, timeout=5.0) as reply:
            if reply.status == 200:
                return
        time.sleep(0.5)
    raise FailedError(
        f"the bare engine did not come up; exit status {process.poll()}; its log:\n{log_tail(launch.log_path)}"
    )


def serve_stock(folder: str, port: int, engine_env: Mapping[str, str]) -> None:
    """Run the model under stock ray.serve.llm on the Ray of this process; returns when it is up."""
    try:
        from ray import serve
        from ray.serve.llm import LLMConfig, build_openai_app
    except ImportError as error:
        raise FailedError(
            f"ray.serve.llm lacks {error.name or error}: install ray[llm] of this Ray's version"
        ) from error
    config = LLMConfig(
        model_loading_config={"model_id": MODEL, "model_source": folder},
        engine_kwargs={key: value for key, value in ENGINE.items() if key in ("max_model_len", "max_num_seqs")},
        accelerator_config={"kind": "cpu"},
        runtime_env={"env_vars": dict(engine_env)},
    )
    serve.start(proxy_location="HeadOnly", http_options={"host": HOST, "port": port})
    serve.run(build_openai_app({"llm_configs": [config]}), name="stock", route_prefix="/")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def measure(pairs: int, loads: tuple[Load, ...], out_dir: Path) -> list[Comparison]:
    """Start both, run the loads on them in turn, end both."""
    folder = ensure_model(SOURCE)
    with TemporaryDirectory(prefix="raylane-bare-") as logs:
        bare_port, stock_port, key = _free_port(), _free_port(), secrets.token_urlsafe(32)
        launch = bare_launch(folder, bare_port, key, Path(logs) / "engine.log")
        engine_env = {name: launch.env[name] for name in ENGINE_VARIABLES}
        with bare_vllm(launch, bare_port), local_ray(cpus=8):
            serve_stock(folder, stock_port, engine_env)
            bare = Way("bare", f"http://{HOST}:{bare_port}", key)
            stock = Way("stock", f"http://{HOST}:{stock_port}")
            return [compare(MODEL, (bare, stock), load, pairs, out_dir) for load in loads]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=9)
    arguments.add_argument("--out", type=Path, default=Path("runs/perf"))
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    try:
        done = measure(chosen.pairs, LOADS, chosen.out)
    except FailedError as error:
        raise SystemExit(f"stock_ray_llm: {error}") from error
    print(comparison_table(done, "stock"))
    if chosen.json:
        chosen.json.write_text(json.dumps([c.to_json() for c in done], indent=1))


if __name__ == "__main__":
    main()
