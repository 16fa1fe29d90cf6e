"""How `raylane scaling` shows a status."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from raylane.autoscaling.live.idle import IdleHost, Idleness, IdleReplica
from raylane.autoscaling.live.status import ModelStatus, ReplicaChange, ScalerStatus
from raylane.autoscaling.rules.registry import deployable_policies
from raylane.cli.app import build_app
from raylane.cli.scaling import show
from raylane.cluster.errors import UsageError

CHANGE = ReplicaChange("2026-01-01T00:00:00.000+00:00", "m", 1, 2, "requests wait too long", "need 1.4", True)
STATUS = ScalerStatus(
    policy="slo",
    mode="act",
    decided="2026-01-01T00:00:05.000+00:00",
    models=(ModelStatus("m", 2, 3, 1, 1, 0, 4, "requests wait too long", "need 2.4"),),
    changes=(CHANGE,),
)


def shown(status: ScalerStatus) -> str:
    console = Console(file=io.StringIO(), width=160)
    data: dict[str, Any] = {**status.to_json(), "log": "/run/scaling.jsonl"}
    show(console, data)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize(
    ("status", "text"),
    [
        pytest.param(STATUS, "m 1 -> 2: requests wait too long; need 1.4", id="a change with its reason and figures"),
        pytest.param(replace(STATUS, changes=(CHANGE._replace(applied=False),)), "(not applied)", id="one not taken"),
        pytest.param(
            replace(STATUS, problem="no directory"), "not deciding: no directory", id="why nothing is decided"
        ),
        pytest.param(
            replace(STATUS, mode="shadow", saved_gpu_hours=1.5, saved_usd=3.0, shadow_since="then"),
            "would have saved 1.50 GPU hours ($3.00) since then",
            id="what a shadow would have saved",
        ),
        pytest.param(
            replace(STATUS, idle=(IdleReplica("r1", "m", "h", ("g",), 25.0, 50.0, Idleness.UNUSED),)),
            "idle: m r1: GPU utilisation under 10% for 25.0 h on 1 GPUs of h, $50.00",
            id="idle replicas with their cost",
        ),
        pytest.param(
            replace(STATUS, idle_hosts=(IdleHost("10.0.0.9", 4, 25.0, None),)),
            "idle: host 10.0.0.9: no replica on any of 4 GPUs for 25.0 h",
            id="idle hosts",
        ),
    ],
)
def test_the_status_for_people(status: ScalerStatus, text: str) -> None:
    assert text in shown(status)


def test_each_model_is_a_row() -> None:
    (row,) = [line for line in shown(STATUS).splitlines() if "│ m " in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["m", "2", "3", "1", "1", "0", "4", CHANGE.reason]


@pytest.mark.parametrize(
    "command", [["deploy"], ["plan"], ["export", "kuberay", "--image", "i", "--hosts", "1", "--gpus-per-host", "4"]]
)
@pytest.mark.parametrize(
    ("scaling", "problem"),
    [
        pytest.param({"policy": "sloe"}, "(got 'sloe')", id="no policy"),
        pytest.param({"policy": "slo-no-band"}, "(got 'slo-no-band')", id="a variant of the study"),
        pytest.param({"knobs": {"hold": 1}}, "rule 'slo' has no knob 'hold'", id="no knob"),
    ],
)
def test_a_wrong_policy_is_refused_wherever_a_config_is_read(
    command: list[str], scaling: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    model = {"source": "builtin:llama-3-8b-shape", "engine": {"kind": "simulator", "max_model_len": 8192}}
    path = tmp_path / "models.yaml"
    path.write_text(json.dumps({"models": {"m": model}, "scaling": scaling}))
    done = CliRunner().invoke(build_app(command), [*command, str(path)])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).startswith(f"{path}: scaling.{next(iter(scaling))}: ")
    assert problem in str(done.exception)


def test_the_schema_lists_the_policies() -> None:
    found = json.loads(CliRunner().invoke(build_app(["schema"]), ["schema"]).stdout)
    listed = found["$defs"]["ScalingConfig"]["properties"]["policy"]
    assert (listed["default"], listed["enum"]) == ("slo", list(deployable_policies()))
