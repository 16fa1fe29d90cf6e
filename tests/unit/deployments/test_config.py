"""The deployment config: every YAML of the repository loads, and what is wrong is explained by file, key and value."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from raylane.benchmarks.plan import BenchmarkPlan
from raylane.cluster.errors import UsageError
from raylane.deployments.config.deployment import (
    DeploymentConfig,
    GatewayConfig,
    ModelConfig,
    ReplicaBounds,
    json_schema,
    load_config,
    to_yaml,
)
from raylane.deployments.engines.vllm.config import VllmConfig

ROOT = Path(__file__).parents[3]
EVERYTHING: dict[str, Any] = {
    "models": {
        "llama-70b": {
            "source": "casperhansen/llama-3.1-70b-instruct-awq",
            "engine": {
                "kind": "vllm",
                "quantization": "awq",
                "dtype": "float16",
                "max_model_len": 8192,
                "gpu_memory_utilization": 0.85,
                "enable_prefix_caching": False,
                "speculative": {"method": "ngram", "num_speculative_tokens": 4},
                "env": {"NCCL_DEBUG": "WARN"},
                "extra_args": ["--max-logprobs", "5"],
            },
            "tensor_parallel": 2,
            "pipeline_parallel": 2,
            "replicas": {"min": 0, "max": 4},
            "slo": {"ttft_ms": 3000, "ttft_ms_per_input_token": 1.0, "tpot_ms": 110, "attainment": 0.95},
            "cpus": 3.5,
            "drain_timeout_s": 30,
        },
        "tiny": {"source": "builtin:tiny-llama", "engine": {"device": "cpu"}},
    },
    "gateway": {"host": "0.0.0.0", "port": 8080, "processes_per_host": 4},
}


def written(folder: Path, data: Any) -> Path:
    path = folder / "deploy.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def model(**changes: Any) -> dict[str, Any]:
    return {"models": {"tiny": {"source": "builtin:tiny-llama", **changes}}}


@pytest.mark.parametrize("path", sorted(ROOT.glob("deployments/configs/**/*.yaml")), ids=lambda path: path.name)
def test_every_deployment_config_of_the_repository_loads(path: Path) -> None:
    config = load_config(path)
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema())
    assert DeploymentConfig.from_data(yaml.safe_load(to_yaml(config)), "again") == config


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/plans/**/*.yaml")), ids=lambda path: path.name)
def test_every_benchmark_plan_of_the_repository_loads(path: Path) -> None:
    assert BenchmarkPlan.from_yaml(path).cases


def test_there_are_configs_and_plans_to_load() -> None:
    assert list(ROOT.glob("deployments/configs/**/*.yaml"))
    assert list(ROOT.glob("benchmarks/plans/**/*.yaml"))


@pytest.mark.parametrize(
    ("data", "key", "value"),
    [
        pytest.param({**model(), "gatway": {"port": 1}}, "gatway", "unknown key", id="an unknown key at the top"),
        pytest.param(model(tensor_paralel=2), "models.tiny.tensor_paralel", "2", id="an unknown key of a model"),
        pytest.param(model(engine={"max_len": 5}), "models.tiny.engine.max_len", "5", id="an unknown engine key"),
        pytest.param(model(engine={"kind": "tgi"}), "models.tiny.engine.kind", "'tgi'", id="an unknown engine"),
        pytest.param(model(engine={"kind": ["a"]}), "models.tiny.engine.kind", "['a']", id="a list of engines"),
        *(
            pytest.param(
                model(engine={"speculative": {"method": "ngram", "num_speculative_tokens": tokens}}),
                "models.tiny.engine.speculative.num_speculative_tokens",
                f"got {tokens!r}",
                id=f"{tokens!r} guessed tokens",
            )
            for tokens in ("five", None, -5, 0, 2.5)
        ),
        pytest.param(
            model(engine={"speculative": {"model": ["a"]}}),
            "models.tiny.engine.speculative.model",
            "['a']",
            id="a list of draft models",
        ),
        pytest.param(
            model(replicas={"min": 3, "max": 2}),
            "models.tiny.replicas",
            "min 3 is larger than max 2",
            id="min above max",
        ),
        pytest.param(model(replicas={"max": 0}), "models.tiny.replicas.max", "0", id="no replica ever"),
        pytest.param(model(tensor_parallel=0), "models.tiny.tensor_parallel", "0", id="no GPU to split over"),
        pytest.param(
            model(slo={"ttft_ms": 5, "tpot_ms": 5, "attainment": 1.5}),
            "models.tiny.slo.attainment",
            "1.5",
            id="more than all",
        ),
        pytest.param(
            model(engine={"env": {"OMP_NUM_THREADS": 1}}),
            "models.tiny.engine.env.OMP_NUM_THREADS",
            "1",
            id="a number for a variable",
        ),
        pytest.param({**model(), "gateway": {"port": 70000}}, "gateway.port", "70000", id="a port that does not exist"),
        pytest.param(
            {**model(), "gateway": {"processes_per_host": "many"}},
            "gateway.processes_per_host",
            "'many'",
            id="no number of processes",
        ),
        pytest.param({"models": {}}, "models", "{}", id="no model"),
        pytest.param({}, "models", "required key is missing", id="nothing"),
        pytest.param({"models": {"tiny": {}}}, "models.tiny.source", "required key is missing", id="no source"),
    ],
)
def test_a_wrong_config_is_explained_by_file_key_and_value(tmp_path: Path, data: Any, key: str, value: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert f"{path}: {key}" in str(caught.value)
    assert value in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("-tiny", id="starts like an option"),
        pytest.param(".hidden", id="starts with a dot"),
        pytest.param("a/b", id="a slash, which paths and URLs would take apart"),
        pytest.param("two words", id="a space"),
        pytest.param("a" * 64, id="longer than a label may be"),
        pytest.param("", id="empty"),
        pytest.param("tiny\n", id="a line break at the end"),
    ],
)
def test_a_bad_model_name_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, {"models": {name: {"source": "builtin:tiny-llama"}}})
    with pytest.raises(UsageError, match="model name") as caught:
        load_config(path)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["a", "Llama-3.1_8B", "7b", "a" * 63])
def test_a_good_model_name_is_taken(tmp_path: Path, name: str) -> None:
    assert list(load_config(written(tmp_path, {"models": {name: {"source": "org/hub-id"}}})).models) == [name]


def test_a_local_folder_is_found_beside_the_file_whatever_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    path = written(tmp_path, model(source="./weights"))
    monkeypatch.chdir("/")
    assert load_config(path).models["tiny"].source == str(tmp_path / "weights")


def test_a_folder_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert load_config(written(tmp_path, model(source="~"))).models["tiny"].source == str(tmp_path)


def speculating(**keys: Any) -> dict[str, Any]:
    return model(engine={"speculative": {"num_speculative_tokens": 5, **keys}})


def test_a_draft_folder_is_found_beside_the_file_and_vllm_gets_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "config.json").write_text("{}")
    path = written(tmp_path, speculating(model="./draft", disable_padded_drafter_batch=True))
    monkeypatch.chdir("/")
    engine = load_config(path).models["tiny"].engine
    assert isinstance(engine, VllmConfig)
    assert engine.speculative == {
        "num_speculative_tokens": 5,
        "model": str(tmp_path / "draft"),
        "disable_padded_drafter_batch": True,
    }


@pytest.mark.parametrize("keys", [{"model": "org/draft"}, {"method": "mtp", "model": None}, {"method": "suffix"}])
def test_a_draft_that_is_no_folder_stays_as_it_is(tmp_path: Path, keys: dict[str, Any]) -> None:
    engine = load_config(written(tmp_path, speculating(**keys))).models["tiny"].engine
    assert isinstance(engine, VllmConfig)
    assert engine.speculative == {"num_speculative_tokens": 5, **keys}


def test_a_missing_draft_folder_is_named_with_file_and_key(tmp_path: Path) -> None:
    path = written(tmp_path, speculating(model="../draft"))
    with pytest.raises(UsageError) as caught:
        load_config(path)
    found = tmp_path.parent / "draft"
    assert str(caught.value) == (
        f"{path}: models.tiny.engine.speculative.model: no config.json in {found} (got '../draft')"
    )


@pytest.mark.parametrize("make", [pytest.param(False, id="no folder"), pytest.param(True, id="a folder without model")])
def test_a_missing_model_folder_is_named_with_file_and_key(tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "weights").mkdir()
    path = written(tmp_path, model(source="./weights"))
    with pytest.raises(UsageError) as caught:
        load_config(path)
    for part in (f"{path}: models.tiny.source: ", f"no config.json in {tmp_path / 'weights'}", "'./weights'"):
        assert part in str(caught.value)


def test_an_unknown_builtin_is_named_when_the_file_is_read_and_not_on_the_cluster(tmp_path: Path) -> None:
    path = written(tmp_path, model(source="builtin:huge-llama"))
    with pytest.raises(UsageError) as caught:
        load_config(path)
    for part in (f"{path}: models.tiny.source", "builtin:huge-llama", "builtin:tiny-llama"):
        assert part in str(caught.value)


def test_everything_survives_yaml_both_ways(tmp_path: Path) -> None:
    config = DeploymentConfig.from_data(EVERYTHING, "test")
    for text in (to_yaml(config), config.to_yaml()):
        assert load_config(written(tmp_path, text)) == config
    assert yaml.safe_load(to_yaml(config))["gateway"] == EVERYTHING["gateway"]


def test_short_yaml_holds_only_what_was_said() -> None:
    config = DeploymentConfig.from_data(model(), "test")
    assert yaml.safe_load(to_yaml(config)) == model()


def test_the_json_schema_takes_a_full_config_and_refuses_wrong_ones() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(EVERYTHING, schema)
    for wrong in ({}, {**model(), "extra": 1}, model(engine={"max_len": 5}), model(replicas={"max": 0})):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_the_json_schema_explains_every_key_of_an_editor() -> None:
    definitions = json_schema()["$defs"]
    bare = [
        f"{name}.{key}"
        for name, block in definitions.items()
        for key, field in block["properties"].items()
        if "description" not in field and "$ref" not in field and "enum" not in field
    ]
    assert [key for key in bare if key.startswith(("ReplicaBounds", "Slo", "GatewayConfig.host"))] == []


@pytest.mark.parametrize(
    ("block", "gpus", "cpus"),
    [
        pytest.param({}, 1, 1.0, id="one GPU takes one CPU"),
        pytest.param({"tensor_parallel": 2, "pipeline_parallel": 3}, 6, 6.0, id="every stage has its group"),
        pytest.param({"engine": {"device": "cpu"}, "tensor_parallel": 2}, 0, 0.1, id="a CPU engine takes no GPU"),
        pytest.param({"cpus": 0}, 1, 0.0, id="no CPU when told so"),
    ],
)
def test_what_a_replica_reserves(block: dict[str, Any], gpus: int, cpus: float) -> None:
    found = ModelConfig.from_data({"source": "org/hub-id", **block}, "test")
    assert (found.gpus, found.reserved_cpus) == (gpus, cpus)


def test_code_of_strangers_and_the_network_are_closed_by_default() -> None:
    assert VllmConfig().trust_remote_code is False
    assert GatewayConfig().host == "127.0.0.1"
    assert ReplicaBounds() == ReplicaBounds(min=1, max=1)
