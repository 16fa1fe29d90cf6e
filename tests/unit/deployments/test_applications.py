"""What a deploy asks of Serve: who is carried along, what restarts, how many replicas are asked for."""

from typing import Any

import pytest

from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.rollout.applications import GATEWAY, Change, Json, change, first_replicas
from raylane.deployments.rollout.applications import merge as merge_counts

STRANGER: Json = {"name": "fruit", "route_prefix": "/fruit", "import_path": "fruit:app", "args": {"ripe": True}}
LOOKALIKE: Json = {"name": "raylane-notes", "route_prefix": "/n", "import_path": "notes:app"}


def config(port: int = 8000, scaling: dict[str, Any] | None = None, **models: dict[str, Any]) -> DeploymentConfig:
    blocks = {name: {"source": "org/hub-id", **block} for name, block in models.items()}
    data = {"models": blocks, "gateway": {"port": port}, "scaling": scaling}
    return DeploymentConfig.from_data(data, "test")


def merge(made: DeploymentConfig, there: dict[str, Json], running: dict[str, int], hosts: int) -> list[Json]:
    return merge_counts(made, there, first_replicas(made, running, 12), hosts)


def applied(wanted: list[Json]) -> dict[str, Json]:
    """What Serve gives back of a PUT."""
    return {app["name"]: app for app in wanted}


def deployed(made: DeploymentConfig, *others: Json) -> dict[str, Json]:
    return applied([*others, *merge(made, {}, {}, hosts=1)])


def count(apps: list[Json], name: str) -> int:
    replicas: int = applied(apps)[name]["deployments"][0]["num_replicas"]
    return replicas


def test_other_peoples_applications_are_carried_along_untouched() -> None:
    before = deployed(config(a={}), STRANGER, LOOKALIKE)
    after = applied(merge(config(b={}), before, {}, hosts=1))
    assert after["fruit"] == STRANGER
    assert after["raylane-notes"] == LOOKALIKE
    assert change(before, list(after.values())) == Change(
        added=("raylane-model-b",), restarted=(), removed=("raylane-model-a",), unchanged=(GATEWAY,)
    )


def test_the_first_deploy_adds_one_application_for_each_model_and_the_gateway() -> None:
    after = merge(config(a={}, b={}), {}, {}, hosts=3)
    assert [app["name"] for app in after] == ["raylane-model-a", "raylane-model-b", GATEWAY]
    assert count(after, GATEWAY) == 3
    assert change({}, after) == Change(("raylane-model-a", "raylane-model-b", GATEWAY), (), (), ())


def test_no_application_has_a_route_on_serves_own_proxy() -> None:
    assert {app["route_prefix"] for app in merge(config(a={}), {}, {}, hosts=1)} == {None}


def test_deploying_the_same_again_changes_nothing() -> None:
    before = deployed(config(a={}, b={}))
    done = change(before, merge(config(a={}, b={}), before, {"a": 1, "b": 1}, hosts=1))
    assert (done.added, done.restarted, done.removed) == ((), (), ())


@pytest.mark.parametrize(
    ("edit", "restarted"),
    [
        pytest.param({"replicas": {"min": 2, "max": 5}}, (), id="bounds alone restart nothing"),
        pytest.param({"slo": {"ttft_ms": 100, "tpot_ms": 10}}, (), id="an SLO alone restarts nothing"),
        pytest.param({"engine": {"kind": "vllm"}}, (), id="a default written out restarts nothing"),
        pytest.param({"engine": {"max_num_seqs": 9}}, ("raylane-model-a",), id="an engine setting restarts its model"),
        pytest.param({"tensor_parallel": 2}, ("raylane-model-a",), id="another split restarts its model"),
        pytest.param({"source": "org/other"}, ("raylane-model-a",), id="another source restarts its model"),
        pytest.param({"drain_timeout_s": 5}, ("raylane-model-a",), id="another drain restarts its model"),
    ],
)
def test_an_edit_restarts_only_the_model_whose_block_changed(edit: dict[str, Any], restarted: tuple[str, ...]) -> None:
    before = deployed(config(a={}, b={}))
    done = change(before, merge(config(a=edit, b={}), before, {"a": 1, "b": 1}, hosts=1))
    assert done.restarted == restarted
    assert (done.added, done.removed) == ((), ())
    assert {"raylane-model-b", GATEWAY} <= set(done.unchanged)


def test_another_port_restarts_the_gateway_alone() -> None:
    before = deployed(config(a={}))
    done = change(before, merge(config(port=9000, a={}), before, {"a": 1}, hosts=1))
    assert (done.restarted, done.unchanged) == ((GATEWAY,), ("raylane-model-a",))


def test_models_that_are_no_longer_named_go() -> None:
    before = deployed(config(a={}, b={}), STRANGER)
    after = merge(config(b={}), before, {"a": 1, "b": 1}, hosts=1)
    assert [app["name"] for app in after] == ["fruit", "raylane-model-b", GATEWAY]
    assert change(before, after).removed == ("raylane-model-a",)


def test_a_strangers_application_is_no_change_of_ours() -> None:
    before = deployed(config(a={}), STRANGER)
    done = change(before, merge(config(a={}), before, {"a": 1}, hosts=1))
    assert "fruit" not in (*done.added, *done.restarted, *done.removed, *done.unchanged)


@pytest.mark.parametrize(
    ("bounds", "running", "asked"),
    [
        pytest.param({"min": 1, "max": 8}, 5, 5, id="what the autoscaler reached stays"),
        pytest.param({"min": 1, "max": 3}, 5, 3, id="a lower ceiling takes the surplus away"),
        pytest.param({"min": 4, "max": 8}, 2, 4, id="a higher floor adds what is missing"),
        pytest.param({"min": 0, "max": 3}, 0, 0, id="a model at rest stays at rest"),
        pytest.param({"min": 1, "max": 3}, 0, 1, id="a model at rest wakes when it may no longer rest"),
        pytest.param({"min": 0, "max": 3}, None, 1, id="a new model starts with one, or nobody would know it works"),
        pytest.param({"min": 2, "max": 3}, None, 2, id="a new model starts with its minimum"),
    ],
)
def test_how_many_replicas_a_model_has_after_a_deploy(bounds: dict[str, int], running: int | None, asked: int) -> None:
    made = config(a={"replicas": bounds}, scaling={})
    assert first_replicas(made, {} if running is None else {"a": running}, 12) == {"a": asked}


REST = {"replicas": {"min": 0, "max": 2}}
PAIR = {"tensor_parallel": 2, **REST}


@pytest.mark.parametrize(
    ("models", "running", "gpus", "asked"),
    [
        pytest.param({"a": REST, "b": REST, "c": REST}, {}, 2, {"a": 1, "b": 1, "c": 0}, id="in the config's order"),
        pytest.param({"a": REST, "b": {}}, {}, 1, {"a": 0, "b": 1}, id="minima come first"),
        pytest.param({"a": PAIR, "b": REST}, {}, 1, {"a": 0, "b": 1}, id="a single fits where a pair does not"),
        pytest.param({"a": {"replicas": {"max": 4}}, "b": REST}, {"a": 4}, 4, {"a": 4, "b": 0}, id="others are busy"),
        pytest.param({"a": REST, "b": REST}, {"a": 0}, 1, {"a": 0, "b": 1}, id="a model at rest leaves its place"),
        pytest.param(
            {"a": {"engine": {"device": "cpu"}, **REST}, "b": REST}, {}, 0, {"a": 1, "b": 0}, id="no GPU is needed"
        ),
    ],
)
def test_a_new_model_that_may_rest_does_so_where_no_gpu_is_left(
    models: dict[str, dict[str, Any]], running: dict[str, int], gpus: int, asked: dict[str, int]
) -> None:
    assert first_replicas(config(8000, {}, **models), running, gpus) == asked


@pytest.mark.parametrize("scaling", [None, {"mode": "shadow"}, {"policy": "fixed"}])
@pytest.mark.parametrize("running", [{}, {"a": 0}])
def test_no_model_rests_where_nothing_would_wake_it(scaling: dict[str, Any] | None, running: dict[str, int]) -> None:
    assert first_replicas(config(8000, scaling, a=REST, b=REST), running, 1) == {"a": 1, "b": 1}


@pytest.mark.parametrize("replicas", [0, 1, 3])
def test_serve_itself_takes_every_application_we_put(replicas: int) -> None:
    """Its own schema refuses an application with zero replicas."""
    from ray.serve.schema import ServeApplicationSchema

    for app in merge_counts(config(a=REST), {}, {"a": replicas}, hosts=2):
        taken = ServeApplicationSchema.model_validate(app)
        assert [deployment.num_replicas for deployment in taken.deployments] == [
            2 if app["name"] == GATEWAY else max(1, replicas)
        ]


def test_the_replica_gets_the_whole_block_but_bounds_and_slo() -> None:
    block = {
        "tensor_parallel": 2,
        "engine": {"max_model_len": 64, "env": {"A": "1"}},
        "replicas": {"max": 3},
        "slo": {"ttft_ms": 1, "tpot_ms": 1},
    }
    (app, _) = merge(config(a=block), {}, {}, hosts=1)
    assert app["args"]["name"] == "a"
    assert app["args"]["block"] == {
        "source": "org/hub-id",
        "tensor_parallel": 2,
        "engine": {"max_model_len": 64, "env": {"A": "1"}},
    }
