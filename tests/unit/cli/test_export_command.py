"""`raylane export kuberay`: which fleets it takes for a config."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from raylane.cli.export import export
from raylane.cluster.errors import UsageError

RESTING = {"source": "builtin:llama-3-70b-shape", "tensor_parallel": 2, "replicas": {"min": 0, "max": 2}}


def run(folder: Path, models: dict[str, dict[str, object]], hosts: int, gpus_per_host: int) -> Result:
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump({"models": models, "gateway": {"host": "0.0.0.0", "port": 8000}}))
    fleet = ["--hosts", str(hosts), "--gpus-per-host", str(gpus_per_host)]
    return CliRunner().invoke(export, ["kuberay", str(path), "--image", "registry.example/raylane", *fleet])


def test_models_that_may_rest_need_no_room_at_the_same_time(tmp_path: Path) -> None:
    done = run(tmp_path, dict.fromkeys("abc", RESTING), hosts=1, gpus_per_host=4)
    assert done.exit_code == 0
    assert "kind: RayCluster" in done.stdout


@pytest.mark.parametrize(
    ("minimum", "hosts", "gpus_per_host", "message"),
    [
        pytest.param(0, 4, 1, "a replica needs 2 GPUs on one host, a pod has 1", id="one replica alone is too large"),
        pytest.param(1, 1, 4, "the minimum replicas need 6 GPUs, 1 pods of 4 have 4", id="minima together"),
    ],
)
def test_what_can_never_stand_is_refused(
    tmp_path: Path, minimum: int, hosts: int, gpus_per_host: int, message: str
) -> None:
    models = {name: {**RESTING, "replicas": {"min": minimum, "max": 2}} for name in "abc"}
    done = run(tmp_path, models, hosts, gpus_per_host)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
