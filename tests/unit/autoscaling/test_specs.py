"""What a policy knows of deployed models: capacity from files or the config, and what to say when there is none."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from live_values import SLO, config

from raylane.autoscaling.live.specs import check_scaling, chosen_policy, model_specs, with_cold_starts
from raylane.autoscaling.rules.registry import RULES, build_rule, deployable_policies
from raylane.autoscaling.share import SHARINGS
from raylane.cluster.errors import UsageError
from raylane.deployments.config.builtin import builtin_config
from raylane.deployments.config.deployment import DeploymentConfig
from raylane.deployments.config.scaling import ScalingConfig, SharingName
from raylane.deployments.rollout.applications import change, merge

VLLM = {"kind": "vllm", "max_model_len": 8192}
CAPACITY = {"step_ms": 20, "prompt_token_ms": 0.1, "context_token_ms": 0.0002, "kv_tokens": 100_000}


def test_a_simulated_engine_and_a_real_one_on_the_same_card_have_the_same_capacity() -> None:
    specs = model_specs(config(sim={}, real={"engine": VLLM}), "L40S", "f")
    assert specs["sim"].profile == specs["real"].profile
    assert specs["sim"].profile.kv_tokens > 50_000, "an 8B model leaves much of a 48 GB card to the cache"


def test_a_simulated_engine_that_runs_faster_carries_more() -> None:
    engine = {"kind": "simulator", "max_model_len": 8192}
    specs = model_specs(
        config(a={}, b={"engine": {**engine, "speedup": 10}}, c={"engine": {**engine, "slowdown": 2}}), None, "f"
    )
    assert specs["b"].profile.step_s == pytest.approx(specs["a"].profile.step_s / 10)
    assert specs["c"].profile.step_s > specs["a"].profile.step_s
    assert specs["b"].profile.tpot_s == specs["a"].profile.tpot_s, "the SLO is in the clients' seconds"


def test_capacity_in_the_config_is_taken_as_it_is_also_for_a_model_on_cpus() -> None:
    cpu = {"source": "org/hub-id", "engine": {"kind": "vllm", "device": "cpu"}, "capacity": CAPACITY}
    spec = model_specs(config(m=cpu), None, "f")["m"]
    assert (spec.profile.step_s, spec.profile.kv_tokens, spec.profile.tpot_s) == (0.02, 100_000, 0.06)


def test_a_local_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(builtin_config("builtin:llama-3-8b-shape")))
    specs = model_specs(config(local={"source": str(tmp_path), "engine": VLLM}, builtin={"engine": VLLM}), "L40S", "f")
    assert specs["local"].profile == specs["builtin"].profile


def test_a_weight_format_that_cannot_be_sized_is_fine_where_capacity_is_given(tmp_path: Path) -> None:
    odd = {**builtin_config("builtin:llama-3-8b-shape"), "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(odd))
    model = {"source": str(tmp_path), "engine": VLLM}
    assert model_specs(config(m={**model, "capacity": CAPACITY}), "L40S", "f")["m"].profile.kv_tokens == 100_000
    with pytest.raises(UsageError, match=r"m\.capacity: is missing, .*'mxfp4' cannot be sized"):
        model_specs(config(m=model), "L40S", "f")


def test_the_draft_of_speculation_takes_its_part_of_the_cache() -> None:
    speculative = {"method": "draft_model", "model": "org/draft", "num_speculative_tokens": 5}
    specs = model_specs(
        config(alone={"engine": VLLM}, both={"engine": {**VLLM, "speculative": speculative}}), "L40S", "f"
    )
    assert specs["both"].profile.kv_tokens < 0.7 * specs["alone"].profile.kv_tokens


def test_bounds_priority_and_gpus_come_along_and_fixed_models_are_left_out() -> None:
    wide = {
        "engine": {**VLLM, "quantization": "awq"},
        "tensor_parallel": 2,
        "priority": 3,
        "replicas": {"min": 0, "max": 5},
    }
    specs = model_specs(config(wide=wide, fixed={"replicas": {"min": 2, "max": 2}}), "L40S", "f")
    assert list(specs) == ["wide"]
    assert (specs["wide"].gpus, specs["wide"].priority) == (2, 3)
    assert (specs["wide"].min_replicas, specs["wide"].max_replicas) == (0, 5)


@pytest.mark.parametrize(
    ("model", "card", "message"),
    [
        pytest.param(
            {"source": "org/hub-id", "engine": VLLM},
            "L40S",
            r"m\.capacity: .*'org/hub-id' is no builtin",
            id="a hub id",
        ),
        pytest.param({"engine": VLLM}, None, r"m\.capacity: .*the card is not known", id="an unknown card"),
        pytest.param(
            {"engine": VLLM}, "X9", r"m\.capacity: .*'X9' is not in the accelerator catalogue", id="a strange card"
        ),
        pytest.param({"slo": None}, "L40S", r"m\.slo: is missing", id="no SLO"),
        pytest.param(
            {"source": "builtin:llama-3-70b-shape", "engine": VLLM},
            "L40S",
            r"m\.capacity: .*does not fit",
            id="too large",
        ),
    ],
)
def test_what_is_missing_is_named_with_file_and_key(model: dict[str, Any], card: str | None, message: str) -> None:
    with pytest.raises(UsageError, match=r"^f\.yaml: models\." + message):
        check_scaling(config(m=model), card, "f.yaml")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        pytest.param({"burst_margim": 1.0}, "no knob 'burst_margim'; it has burst_margin", id="an unknown knob"),
        pytest.param(
            {"burst_margin": "much"},
            r"burst_margin: Input should be a valid number \(got 'much'\)",
            id="text for a number",
        ),
        pytest.param({"burst_margin": True}, "burst_margin: Input should be a valid number", id="yes for a number"),
        pytest.param({"forecast": 1}, "forecast: Input should be a valid boolean", id="a number for yes or no"),
        pytest.param(
            {"target_load": 0}, r"target_load: Input should be greater than 0 \(got 0\)", id="out of its bounds"
        ),
    ],
)
def test_wrong_knobs_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=r"^f\.yaml: scaling\.knobs.*" + message):
        check_scaling(config({"knobs": knobs}, m={}), "L40S", "f.yaml")


@pytest.mark.parametrize("policy", deployable_policies())
def test_a_policy_of_the_config_is_its_rule_and_shares_as_its_entry_says(policy: str) -> None:
    chosen = chosen_policy(ScalingConfig(policy=policy), {}, (), "f")
    assert (chosen.proposer, chosen.sharing) == (build_rule(policy), RULES[policy].sharing)


@pytest.mark.parametrize("policy", ["slow", "", "slo-no-band", "static"])
def test_what_is_no_policy_is_refused_with_those_there_are_also_where_nothing_is_scaled(policy: str) -> None:
    fixed = {"replicas": {"min": 2, "max": 2}}
    with pytest.raises(UsageError, match=rf"^f\.yaml: scaling\.policy: there are slo, .*kpa.* \(got '{policy}'\)$"):
        check_scaling(config({"policy": policy}, m=fixed), None, "f.yaml")


@pytest.mark.parametrize("sharing", get_args(SharingName))
def test_the_config_may_name_how_models_share(sharing: str) -> None:
    scaling = ScalingConfig.model_validate({"policy": "kpa", "sharing": sharing})
    assert chosen_policy(scaling, {}, (), "f").sharing is SHARINGS[sharing]
    assert set(get_args(SharingName)) == set(SHARINGS)


def test_a_whole_number_is_fine_where_a_float_is_meant() -> None:
    assert chosen_policy(ScalingConfig(knobs={"hold_s": 60}), {}, (), "f")


@pytest.mark.parametrize(
    ("scaling", "replicas", "wanted"),
    [
        pytest.param({}, {"min": 0, "max": 1}, True, id="a range asks for an autoscaler"),
        pytest.param({}, {"min": 2, "max": 2}, False, id="no range, nothing to decide"),
        pytest.param({"policy": "fixed"}, {"min": 1, "max": 3}, False, id="the fixed policy decides nothing"),
        pytest.param(None, {"min": 1, "max": 3}, False, id="without the block nobody scales"),
    ],
)
def test_who_needs_an_autoscaler(scaling: dict[str, Any] | None, replicas: dict[str, int], wanted: bool) -> None:
    data = {"models": {"m": {"source": "org/id", "replicas": replicas}}, "scaling": scaling}
    assert DeploymentConfig.from_data(data, "test").wants_scaling is wanted


def test_cold_starts_are_taken_from_the_config_else_learnt_else_estimated() -> None:
    both = config(told={"cold_start_s": 33, "engine": VLLM}, learnt={"engine": VLLM})
    specs = model_specs(both, "L40S", "f")
    assert specs["told"].cold_start_s == 33
    assert 60 < specs["learnt"].cold_start_s < 180, "16 GB of weights"
    after = with_cold_starts(specs, both, {"told": 80.0, "learnt": 70.0})
    assert (after["told"].cold_start_s, after["learnt"].cold_start_s) == (33, 70.0)


def test_keys_of_scaling_restart_nothing() -> None:
    before = merge(config(m={}), {}, {"m": 1}, hosts=1)
    changed = {"priority": 5, "cold_start_s": 9, "capacity": CAPACITY, "slo": {**SLO, "tpot_ms": 99}}
    after = merge(config({"policy": "queue", "mode": "shadow"}, m=changed), {}, {"m": 1}, hosts=1)
    done = change({app["name"]: app for app in before}, after)
    assert (done.added, done.restarted, done.removed) == ((), (), ())
