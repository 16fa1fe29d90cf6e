"""`raylane export kuberay`: which fleets it takes for a config."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from raylane.cli.export import export
from raylane.cluster.errors import UsageError

RESTING = {"source": "builtin:llama-3-70b-shape", "tensor_parallel": 2, "replicas": {"min": 0, "max": 2}}


def run(folder: Path, models: dict[str, dict[str, object]], hosts: int, gpus_per_host: int, **more: object) -> Result:
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump({"models": models, "gateway": {"host": "0.0.0.0", "port": 8000}, **more}))
    fleet = ["--hosts", str(hosts), "--gpus-per-host", str(gpus_per_host)]
    return CliRunner().invoke(export, ["kuberay", str(path), "--image", "registry.example/raylane", *fleet])


def test_models_that_may_rest_need_no_room_at_the_same_time(tmp_path: Path) -> None:
    done = run(tmp_path, dict.fromkeys("abc", RESTING), hosts=1, gpus_per_host=4, scaling={"policy": "slo"})
    assert done.exit_code == 0
    assert "kind: RayCluster" in done.stdout


def test_without_an_autoscaler_nothing_rests(tmp_path: Path) -> None:
    done = run(tmp_path, dict.fromkeys("abc", RESTING), hosts=1, gpus_per_host=4)
    assert isinstance(done.exception, UsageError)
    assert "the minimum replicas need 6 GPUs" in str(done.exception)


def test_a_builtin_that_does_not_exist_is_named(tmp_path: Path) -> None:
    done = run(tmp_path, {"a": {"source": "builtin:nope"}}, hosts=1, gpus_per_host=4)
    assert isinstance(done.exception, UsageError)
    assert f"{tmp_path / 'models.yaml'}: models.a.source: no builtin model 'builtin:nope'" in str(done.exception)


@pytest.mark.parametrize(
    ("model", "key"),
    [
        pytest.param({"source": "./weights"}, "source: './weights'", id="the model"),
        pytest.param(
            {"source": "org/big", "engine": {"speculative": {"model": "~/draft", "num_speculative_tokens": 3}}},
            "engine.speculative.model: '~/draft'",
            id="its draft",
        ),
    ],
)
def test_a_folder_of_this_machine_is_refused(tmp_path: Path, model: dict[str, object], key: str) -> None:
    done = run(tmp_path, {"a": model}, hosts=1, gpus_per_host=4)
    assert isinstance(done.exception, UsageError)
    assert f"models.a.{key} is a folder of this machine" in str(done.exception)


@pytest.mark.parametrize(
    ("cpus", "replicas", "message"),
    [
        pytest.param(64, 1, "a replica of a reserves 64 CPUs, a pod has 16", id="one replica"),
        pytest.param(9, 2, "2 of a with 1 GPUs and 9 CPUs each", id="two on a pod for one"),
        pytest.param(None, 16, "the minimum replicas need 16 GPUs", id="one CPU for each GPU"),
    ],
)
def test_rays_cpus_count(tmp_path: Path, cpus: int | None, replicas: int, message: str) -> None:
    bounds = {"min": replicas, "max": replicas}
    model: dict[str, object] = {"source": "builtin:tiny-llama", "cpus": cpus, "replicas": bounds}
    done = run(tmp_path, {"a": model}, hosts=1, gpus_per_host=4)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


@pytest.mark.parametrize(
    ("minimum", "hosts", "gpus_per_host", "message"),
    [
        pytest.param(
            0, 4, 1, "a replica of a needs 2 GPUs on one host, a pod has 1", id="one replica alone is too large"
        ),
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
