"""`raylane plan`: what it says about configs that fit and about those that do not, on recordings."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from raylane.cli.demo import SIMULATED, links_line
from raylane.cli.main import app
from raylane.cli.plan import misfits
from raylane.cluster.errors import UsageError
from raylane.cluster.recording import load_recording
from raylane.deployments.config import load_config
from raylane.deployments.reports import ReplicaReport, ReplicaState, Snapshot

ROOT = Path(__file__).resolve().parents[3]
MIXED = ROOT / "deployments" / "configs" / "l40s-x12-mixed.yaml"
RECORDINGS = ROOT / "tests" / "fixtures" / "topology"
L40S = ("l40s-x12-three-hosts", "l40s-x12-six-switch-pairs")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False, env={"COLUMNS": "200"})


def on(recording: str) -> tuple[str, str]:
    return "--from", str(RECORDINGS / f"{recording}.json")


def config(folder: Path, engine: dict[str, Any] | None = None, **keys: Any) -> str:
    """A file with one 70B model, AWQ on two GPUs unless said otherwise."""
    block = {"source": "builtin:llama-3-70b-shape", "tensor_parallel": 2, **keys}
    block["engine"] = {"quantization": "awq"} if engine is None else engine
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump({"models": {"large": block}}))
    return str(path)


@pytest.mark.parametrize("recording", L40S)
def test_the_mixed_config_fills_both_fleets_with_every_pair_on_its_best_link(recording: str) -> None:
    done = run(str(MIXED), *on(recording), "--json")
    assert done.exit_code == 0
    data = json.loads(done.stdout)
    placed = data["placement"]
    assert (placed["fits"], placed["second_best"], placed["free"]) == (True, 0, [])
    assert {item["model"]: item["replicas"] for item in placed["models"]} == {"llama-8b": 4, "llama-70b": 4}
    assert len({uuid for replica in placed["placements"] for uuid in replica["uuids"]}) == 12
    small, large = data["models"]["llama-8b"]["on"]["L40S"], data["models"]["llama-70b"]["on"]["L40S"]
    assert (small["kv_tokens"], large["kv_tokens"], large["gpus"]) == (197_680, 130_944, 2)
    assert large["better_split"]["split"] in {"TP=2", "PP=2"}


def test_for_people_there_are_memory_ceilings_and_a_drawing() -> None:
    shown = run(str(MIXED), *on("l40s-x12-three-hosts")).stdout
    for part in ("197,680 tokens of context", "ceilings of one replica", "every group on its best link", "TP=2 yields"):
        assert part in " ".join(shown.split())
    assert re.findall(r"l40s-\d +(\[.*\])", shown) == ["[A1 A2] [A3 A4]", "[B1=B1] [B2=B2]", "[B3=B3] [B4=B4]"]


@pytest.mark.parametrize(
    ("change", "recording", "parts"),
    [
        pytest.param(
            {"engine": {}},
            "l40s-x12-three-hosts",
            ("models.large does not fit on L40S: ", "70.6 GB of weights", "Nearest: ", "quantization fp8"),
            id="70B in 16 bits on two cards",
        ),
        pytest.param(
            {"engine": {"quantization": "awq", "gpu_memory_utilization": 0.85, "max_model_len": 4096}}
            | {"tensor_parallel": 1},
            "l40s-x12-three-hosts",
            ("does not fit on L40S", "39.8 GB of weights", "gpu_memory_utilization 0.95"),
            id="70B in 4 bits on one card at 0.85",
        ),
        pytest.param(
            {"replicas": {"min": 3, "max": 3}},
            "h200-x4-nvlink",
            ("models.large.replicas: only 2 of the minimum of 3 fit",),
            id="more replicas than GPUs",
        ),
        pytest.param({}, "one-gpu", ("large: tensor_parallel 2 fits on none of 1 hosts",), id="a pair on one GPU"),
        pytest.param({}, "none", ("fits on none of", "largest has 0 GPUs"), id="no GPU at all"),
        pytest.param(
            {"engine": {"kind": "simulator", "gpu": "L40S", "quantization": "awq"}},
            "h200-x4-nvlink",
            ("models.large.engine.gpu", "'L40S'", "H200"),
            id="a simulated card that no host has",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_the_reason(
    tmp_path: Path, change: dict[str, Any], recording: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        run(config(tmp_path, **change), *on(recording))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("change", "card", "part"),
    [
        pytest.param({"engine": {}}, "NVIDIA L40S", "70.6 GB of weights", id="too large for the card"),
        pytest.param({}, "NVIDIA L40S", None, id="it fits"),
        pytest.param({"engine": {}}, "some card of next year", None, id="an unknown card says nothing"),
        pytest.param({"engine": {}}, None, None, id="a mixed fleet says nothing"),
        pytest.param({"engine": {}, "source": "meta-llama/Llama-3.1-70B"}, "L40S", None, id="a hub id says nothing"),
        pytest.param({"engine": {"kind": "simulator", "gpu": "L40S"}}, "L40S", None, id="nor does a simulated engine"),
    ],
)
def test_what_deploy_warns_of(tmp_path: Path, change: dict[str, Any], card: str | None, part: str | None) -> None:
    lines = misfits(load_config(Path(config(tmp_path, **change))), card)
    assert len(lines) == (part is not None)
    assert all(line.startswith("models.large does not fit on L40S") and str(part) in line for line in lines)


def test_json_says_what_does_not_fit_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError):
        app(["plan", config(tmp_path, engine={}), *on("l40s-x12-three-hosts"), "--json"], standalone_mode=False)
    data = json.loads(capsys.readouterr().out)
    assert data["placement"] is None
    large = data["models"]["large"]["on"]["L40S"]
    assert (large["fits"], large["limit"]) == (False, "weights")
    assert 1 <= len(large["nearest"]) <= 3


def test_every_nearest_setting_that_is_offered_does_fit(tmp_path: Path) -> None:
    """What the refusal of 16-bit 70B names, tried."""
    with pytest.raises(UsageError) as caught:
        run(config(tmp_path, engine={}), *on("l40s-x12-three-hosts"))
    offers = str(caught.value).partition("Nearest: ")[2].split("; ")
    assert offers
    for offer in offers:
        changes = dict(part.split() for part in offer.split(", "))
        shape = {key: int(changes.pop(key)) for key in ("tensor_parallel", "pipeline_parallel") if key in changes}
        engine = {key: yaml.safe_load(value) for key, value in changes.items()}
        assert run(config(tmp_path, engine=engine, **shape), *on("l40s-x12-three-hosts")).exit_code == 0


def test_a_model_without_a_config_json_is_placed_and_said_to_be_of_unknown_size(tmp_path: Path) -> None:
    done = run(config(tmp_path, source="meta-llama/Llama-3.1-70B"), *on("l40s-x8-plx"))
    assert done.exit_code == 0
    assert "size unknown, only placed: meta-llama/Llama-3.1-70B" in done.stdout
    assert "2 GPUs used" in done.stdout


def test_models_on_the_cpu_take_no_gpu() -> None:
    done = run(str(ROOT / "deployments" / "configs" / "demo.yaml"), *on("one-gpu"))
    assert done.exit_code == 0
    assert "tiny: on device cpu, takes no GPU" in done.stdout


def test_the_guide_suggests_four_bits_on_two_cards_for_70b_on_l40s() -> None:
    data = json.loads(run("--suggest", "builtin:llama-3-70b-shape", "--gpu", "L40S", "--json").stdout)
    assert data["best"] == {"format": "awq", "gpus": 2}
    shown = run("--suggest", "builtin:llama-3-8b-shape", "--gpu", "l40s").stdout
    assert "suggested" in shown
    assert "16-bit" in shown


def test_the_guide_reads_a_config_json_file(tmp_path: Path) -> None:
    from raylane.deployments.builtin import builtin_config

    path = tmp_path / "config.json"
    path.write_text(json.dumps(builtin_config("builtin:llama-3-8b-shape")))
    by_file, by_folder = (run("--suggest", str(p), "--gpu", "L40S", "--json").stdout for p in (path, tmp_path))
    assert json.loads(by_file)["options"] == json.loads(by_folder)["options"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        pytest.param((), "give a deployment config, or --suggest", id="nothing"),
        pytest.param((str(MIXED), "--suggest", "x"), "give a deployment config, or --suggest", id="both"),
        pytest.param(("--suggest", "builtin:llama-3-8b-shape"), "--gpu L40S", id="a guide without a card"),
        pytest.param(("--suggest", "builtin:llama-3-8b-shape", "--gpu", "L50"), "'L50'", id="an unknown card"),
        pytest.param(("--suggest", "/absent", "--gpu", "L40S"), "/absent: no readable config.json", id="no model"),
        pytest.param((str(MIXED), "--gpu", "L40S"), "--gpu L40S goes with --suggest", id="a card beside a config"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], part: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(*arguments)
    assert part in str(caught.value)


@pytest.mark.parametrize("name", SIMULATED)
def test_what_a_simulated_demo_needs_is_there_and_fits(name: str) -> None:
    chosen = SIMULATED[name]
    assert chosen.recording is not None
    assert chosen.recording.read_bytes() == (RECORDINGS / chosen.recording.name).read_bytes(), "one recording, shipped"
    (host,) = load_recording(chosen.recording)
    assert len(host.gpus) == chosen.gpus
    assert sum(model.gpus * model.replicas.min for model in load_config(chosen.config).models.values()) == chosen.gpus
    assert run(str(chosen.config), "--from", str(chosen.recording)).exit_code == 0


def test_the_last_line_counts_pairs_and_their_links() -> None:
    def replica(name: str, gpus: tuple[str, ...], second_best: bool) -> ReplicaReport:
        return ReplicaReport(name, "m", ReplicaState.READY, None, None, "h", gpu_uuids=gpus, second_best=second_best)

    replicas = (replica("a", ("1", "2"), False), replica("b", ("3", "4"), True), replica("c", ("5",), False))
    known = Snapshot("e", ("m",), replicas, {}, {})
    assert links_line(known) == "1 of 2 pairs are on their best link; 5 GPUs leased"
    assert links_line(None) == "0 of 0 pairs are on their best link; 0 GPUs leased"
