"""What the gateway adds to the bare engine: the same vLLM process reached both ways, alternating pairs.

python -m studies.performance.gateway_overhead [--pairs 9] [--out runs/perf] [--json FILE]
"""

import argparse
import json
from pathlib import Path

from raylane.cluster.local_ray import local_ray, use_a_token

use_a_token()

from raylane.benchmarks.pairs import Load, Way, compare  # noqa: E402 - the token comes first
from raylane.deployments.config.deployment import DeploymentConfig  # noqa: E402
from raylane.deployments.rollout.rollout import deploy, snapshot  # noqa: E402
from raylane.deployments.rollout.serve_api import ServeApi, dashboard_url  # noqa: E402
from studies.performance.comparison import comparison_table  # noqa: E402

ENGINE = {"device": "cpu", "max_model_len": 512, "max_num_seqs": 64, "env": {"OMP_NUM_THREADS": "1"}}
CONFIG = {
    "models": {"tiny": {"source": "builtin:tiny-llama", "engine": ENGINE}},
    "gateway": {"port": 8000},
}
LOADS = (
    Load(concurrency=1, input_tokens=64, output_tokens=16, requests=150, warmup_requests=20),
    Load(concurrency=32, input_tokens=64, output_tokens=64, duration_s=8.0, warmup_requests=64),
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=9)
    arguments.add_argument("--out", type=Path, default=Path("runs/perf"))
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    config = DeploymentConfig.model_validate(CONFIG)
    with local_ray(cpus=4) as context:
        deploy(config, ServeApi(dashboard_url(context)), "gateway_overhead", lambda statuses: None, 600.0)
        known = snapshot()
        assert known is not None and known.replicas[0].url is not None  # noqa: S101, PT018
        bare = Way("bare", known.replicas[0].url, known.replicas[0].api_key)
        through = Way("raylane", f"http://127.0.0.1:{config.gateway.port}")
        done = [compare("tiny", (bare, through), load, chosen.pairs, chosen.out) for load in LOADS]
    print(comparison_table(done, "raylane"))
    if chosen.json:
        chosen.json.write_text(json.dumps([c.to_json() for c in done], indent=1))


if __name__ == "__main__":
    main()
