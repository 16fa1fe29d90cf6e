"""`raylane plan`: what it says about configs that fit and about those that do not, on recordings."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from raylane.cli.app import build_app
from raylane.cli.demo import SIMULATED, links_line
from raylane.cli.plan_sizes import measured_link
from raylane.cli.planning import misfits
from raylane.cluster.catalog import need_accelerator
from raylane.cluster.errors import UsageError
from raylane.cluster.hosts import Gpu, Host, Link, LinkMeasurement, Verdict
from raylane.cluster.recording import load_recording
from raylane.deployments.config.builtin import builtin_config
from raylane.deployments.config.deployment import load_config
from raylane.deployments.directory.reports import ReplicaReport, ReplicaState, Snapshot

app = build_app(["plan"])
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
    drawn = re.findall(r"l40s-\d +(\[.*\])", shown)
    assert sorted(drawn) == ["[A1 A2] [A3 A4]", "[B1=B1] [B2=B2]", "[B3=B3] [B4=B4]"]


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
        pytest.param(
            {"pipeline_parallel": 3},
            "one-gpu",
            ("models.large: tensor_parallel 2 x pipeline_parallel 3: no host has 6 GPUs", "at most 1 on one"),
            id="six on one GPU",
        ),
        pytest.param({}, "none", ("models.large: tensor_parallel 2: no host", "at most 0 on one"), id="no GPU at all"),
        pytest.param(
            {"engine": {"kind": "simulator", "gpu": "L40S", "quantization": "awq"}},
            "h200-x4-nvlink",
            ("models.large.engine.gpu", "'L40S'", "H200"),
            id="a simulated card that no host has",
        ),
        pytest.param(
            {"engine": {"kind": "simulator", "gpu": "Nope"}},
            "one-gpu",
            ("models.large.engine.gpu: gpu 'Nope' is not in the accelerator catalogue",),
            id="a simulated card that nobody has",
        ),
    ],
)
def test_what_does_not_fit_is_said_with_the_reason(
    tmp_path: Path, change: dict[str, Any], recording: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        run(config(tmp_path, **change), *on(recording))
    for part in (f"{tmp_path / 'deployment.yaml'}: models.large", *parts):
        assert part in str(caught.value)


def test_what_no_host_can_hold_is_sized_and_placed_as_far_as_it_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"source": "builtin:llama-3-8b-shape"}
    file = tmp_path / "deployment.yaml"
    file.write_text(yaml.safe_dump({"models": {"small": small, "wide": {**small, "tensor_parallel": 8}}}))
    with pytest.raises(UsageError, match=f"^{file}: models.wide: tensor_parallel 8: no host has 8 GPUs[^\\n]*$"):
        app(["plan", str(file), *on("one-gpu"), "--json"], standalone_mode=False)
    data = json.loads(capsys.readouterr().out)
    assert data["models"]["wide"]["on"]["L40S"]["gpus"] == 8
    assert not data["placement"]["fits"]
    assert [(item["model"], item["replicas"]) for item in data["placement"]["models"]] == [("small", 1), ("wide", 0)]


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
        changes = dict(part.split() for part in re.sub(r" \(needs [^)]*\)", "", offer).split(", "))
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
    path = tmp_path / "config.json"
    path.write_text(json.dumps(builtin_config("builtin:llama-3-8b-shape")))
    by_file, by_folder = (run("--suggest", str(p), "--gpu", "L40S", "--json").stdout for p in (path, tmp_path))
    assert json.loads(by_file)["options"] == json.loads(by_folder)["options"]


def test_recordings_given_one_after_the_other_are_one_fleet(tmp_path: Path) -> None:
    file = config(tmp_path, replicas={"min": 1, "max": 9})
    done = run(file, *on("l40s-x8-plx"), *on("l40s-x12-three-hosts"), "--json")
    (model,) = json.loads(done.stdout)["placement"]["models"]
    assert model["possible_hosts"] == ["l40s-plx", "l40s-1", "l40s-2", "l40s-3"]
    assert model["replicas"] == 9


def recorded(folder: Path, gpu_name: str) -> tuple[str, str]:
    """A recording of one host with one GPU of this name."""
    path = folder / "recording.json"
    path.write_text((RECORDINGS / "one-gpu.json").read_text().replace("NVIDIA L40S", gpu_name))
    return "--from", str(path)


MIXED_CARDS = ("NVIDIA L40S", "NVIDIA L4", "NVIDIA L4", "NVIDIA L40S")


def mixed_host(folder: Path, *names: str) -> tuple[str, str]:
    """A recording of one host with GPUs of these names."""
    gpus = [{"uuid": f"GPU-{index}", "index": index, "name": name} for index, name in enumerate(names)]
    matrix = [" ".join("X" if i == j else "PIX" for j in range(len(names))) for i in range(len(names))]
    host = {"name": "mixed", "gpus": gpus, "matrix": matrix}
    path = folder / "recording.json"
    path.write_text(json.dumps({"raylane_topology": 1, "note": "", "hosts": [host]}))
    return "--from", str(path)


@pytest.mark.parametrize(
    ("change", "uuids"),
    [
        pytest.param({"engine": {"quantization": "awq"}}, {"GPU-0", "GPU-3"}, id="39.8 GB do not fit on an L4"),
        pytest.param(
            {"source": "builtin:llama-3-8b-shape", "engine": {"kind": "simulator", "gpu": "L4", "max_model_len": 2048}},
            {"GPU-1", "GPU-2"},
            id="a simulated L4",
        ),
        pytest.param(
            {"source": "org/model", "engine": {"kind": "simulator", "gpu": "L4"}},
            {"GPU-1", "GPU-2"},
            id="a simulated L4 and a model of unknown size",
        ),
    ],
)
def test_on_two_kinds_of_card_in_one_host_replicas_take_those_that_will_do(
    tmp_path: Path, change: dict[str, Any], uuids: set[str]
) -> None:
    block = {"tensor_parallel": 1, "replicas": {"min": 2, "max": 4}, **change}
    block["engine"] = {"gpu_memory_utilization": 0.95, "max_model_len": 2048, **block["engine"]}
    done = run(config(tmp_path, **block), *mixed_host(tmp_path, *MIXED_CARDS), "--json")
    placed = json.loads(done.stdout)["placement"]
    assert {uuid for replica in placed["placements"] for uuid in replica["uuids"]} == uuids
    assert {replica["host"] for replica in placed["placements"]} == {"mixed"}
    assert placed["models"][0]["possible_hosts"] == ["mixed"]
    with pytest.raises(UsageError, match=r"models\.large\.replicas: only 2 of the minimum of 3"):
        run(config(tmp_path, **{**block, "replicas": {"min": 3, "max": 4}}), *mixed_host(tmp_path, *MIXED_CARDS))


@pytest.mark.parametrize("words", ["x[/y]z", "[/b]", "a[bold]b"])
def test_what_looks_like_markup_is_printed_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    card = {"name": f"card {words}", "memory_mib": 46_068, "bandwidth_gb_per_s": 864, "bf16_tflops": 181}
    catalogue = tmp_path / "catalogue.yaml"
    catalogue.write_text(yaml.safe_dump({"accelerators": [{**card, "interconnect": f"bus {words}", "source": "x"}]}))
    monkeypatch.setenv("RAYLANE_ACCELERATORS", str(catalogue))
    odd, plain = tmp_path / words / "odd", tmp_path / words / "plain"
    for folder in (odd, plain):
        folder.mkdir(parents=True)
    (plain / "config.json").write_text(json.dumps(builtin_config("builtin:llama-3-8b-shape")))
    of_unknown_format = checkpoint(odd, {"quant_method": words})
    recording = mixed_host(tmp_path, f"card {words}", f"card {words}", f"other {words}")
    planned = run(config(tmp_path, {}, source=str(plain)), *recording).stdout
    for part in (f"on 2x card {words}: ", f"other {words}: not in the acc", f"assumed: bus {words}, 20 GB/s"):
        assert part in planned
    unknown = run(config(tmp_path, {}, source=of_unknown_format), *recording).stdout
    assert f"size unknown, only placed: quantization: {words!r} cannot be sized" in unknown
    monkeypatch.chdir(tmp_path)
    guide = " ".join(run("--suggest", f"{words}/plain", "--gpu", f"card {words}").stdout.split())
    assert f"{words}/plain on card {words}, context" in guide
    with pytest.raises(UsageError, match="does not fit on"):
        run(
            config(tmp_path, {"max_model_len": 8192}, source="builtin:llama-3-70b-shape"),
            *mixed_host(tmp_path, f"card {words}"),
        )


TRTLLM = {"kind": "tensorrt-llm", "max_seq_len": 4096}


@pytest.mark.parametrize(
    ("gpu_name", "change", "parts", "never"),
    [
        pytest.param(
            "NVIDIA A100 80GB PCIe",
            {"engine": {}},
            ("quantization compressed-tensors (needs an INT8 checkpoint)",),
            ("quantization int8", "kv_cache_dtype fp8"),
            id="vLLM has no int8, and an A100 no FP8",
        ),
        pytest.param(
            "NVIDIA L40S",
            {"engine": {"gpu_memory_utilization": 0.95, "max_model_len": 2048}},
            ("quantization awq (needs an AWQ checkpoint)",),
            (),
            id="AWQ is not made while loading",
        ),
        pytest.param(
            "NVIDIA L40S",
            {"source": "builtin:llama-3.1-70b-shape", "engine": {"kind": "tensorrt-llm", "quantization": "int4_awq"}},
            ("max_seq_len is 131,072", "Nearest: max_seq_len "),
            ("max_model_len", "vLLM"),
            id="TensorRT-LLM's names in the reason",
        ),
        pytest.param(
            "H100-SXM",
            {"engine": {**TRTLLM, "max_batch_size": 256, "max_num_tokens": 4096}},
            ("quantization fp8 (needs an FP8 checkpoint)", "quantization int4_awq (needs an AWQ checkpoint)"),
            ("max_model_len", "vLLM"),
            id="TensorRT-LLM quantizes nothing while loading",
        ),
        pytest.param(
            "NVIDIA L40S",
            {"engine": {**TRTLLM, "max_batch_size": 4096, "max_num_tokens": 2048}},
            ("max_batch_size 4096 is larger than max_num_tokens 2048",),
            ("vLLM", "max_num"),
            id="TensorRT-LLM's names in its settings",
        ),
    ],
)
def test_a_refusal_names_settings_that_the_engine_has(
    tmp_path: Path, gpu_name: str, change: dict[str, Any], parts: tuple[str, ...], never: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as caught:
        run(config(tmp_path, tensor_parallel=1, **change), *recorded(tmp_path, gpu_name))
    said = str(caught.value)
    for part in parts:
        assert part in said
    for part in never:
        assert part not in said.replace("max_num_tokens", "")


def checkpoint(folder: Path, declared: dict[str, Any]) -> str:
    """A folder with the 8B model's config.json and this quantization_config."""
    plain = dict(builtin_config("builtin:llama-3-8b-shape"))
    (folder / "config.json").write_text(json.dumps({**plain, "quantization_config": declared}))
    return str(folder)


@pytest.mark.parametrize(
    ("declared", "engine", "format"),
    [
        pytest.param({"quant_method": "mxfp4"}, {}, "mxfp4", id="of the checkpoint"),
        pytest.param({"quant_method": "gptq", "bits": 3}, {"quantization": "gptq"}, "3-bit gptq", id="3 bits"),
        pytest.param(None, {"quantization": "torchao"}, "torchao", id="of the engine"),
        pytest.param(None, {"quantization": "compressed-tensors"}, "compressed-tensors", id="of an unknown checkpoint"),
    ],
)
def test_a_format_that_cannot_be_sized_is_named_and_the_rest_is_still_planned(
    tmp_path: Path, declared: dict[str, Any] | None, engine: dict[str, Any], format: str
) -> None:
    source = "builtin:llama-3-8b-shape" if declared is None else checkpoint(tmp_path, declared)
    models = {"odd": {"source": source, "engine": engine}, "plain": {"source": "builtin:llama-3-8b-shape"}}
    file = tmp_path / "deployment.yaml"
    file.write_text(yaml.safe_dump({"models": models}))
    done = run(str(file), *on("l40s-x8-plx"))
    assert done.exit_code == 0
    assert f"odd: size unknown, only placed: quantization: '{format}' cannot be sized" in done.stdout
    assert "plain: 8.03 B parameters on 1x L40S" in done.stdout
    assert "2 GPUs used" in done.stdout


def test_a_method_that_leaves_the_bits_to_the_checkpoint_is_sized_by_it(tmp_path: Path) -> None:
    weights = {"num_bits": 8, "type": "int"}
    source = checkpoint(tmp_path, {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights}}})
    file = config(tmp_path, {"quantization": "compressed-tensors"}, source=source, tensor_parallel=1)
    sized = json.loads(run(file, *on("one-gpu"), "--json").stdout)["models"]["large"]["on"]["L40S"]
    assert sized["weight_bytes_per_gpu"] == pytest.approx(9.1e9, rel=0.01)


VISION_AND_WINDOWS = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "vision_config": {"model_type": "siglip_vision_model"},
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    },
}
DOUBTS = ("the vision tower is not counted", "20 of 24 layers have a sliding window of 1024 tokens: ")


@pytest.mark.parametrize(
    "engine",
    [{"max_model_len": 8192}, {"max_model_len": 131_072, "gpu_memory_utilization": 0.15}],
    ids=["fits", "does not fit"],
)
def test_what_is_doubtful_is_said_whether_it_fits_or_not(tmp_path: Path, engine: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(VISION_AND_WINDOWS))
    file = config(tmp_path, engine, source=str(tmp_path), tensor_parallel=1)
    fits = engine["max_model_len"] == 8192
    for more in ((), ("--json",)):
        done = CliRunner().invoke(app, ["plan", file, *on("l40s-x8-plx"), *more], env={"COLUMNS": "200"})
        said = " ".join(done.stdout.split())
        assert ("does not fit" in said or '"fits": false' in said) is not fits
        assert all(part in said for part in DOUBTS)
        assert (done.exception is None) is fits
        assert fits or all(part in str(done.exception) for part in DOUBTS)
    lines = misfits(load_config(Path(file)), "NVIDIA L40S")
    assert len(lines) == (0 if fits else 1)
    assert all(part in line for part in DOUBTS for line in lines)


def test_the_guide_says_what_is_doubtful(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(VISION_AND_WINDOWS))
    for more in ((), ("--json",)):
        said = " ".join(run("--suggest", str(tmp_path), "--gpu", "L40S", *more).stdout.split())
        assert all(part in said for part in DOUBTS)


@pytest.mark.parametrize(
    "engine",
    [TRTLLM, {"extra_args": ["--disable-hybrid-kv-cache-manager"]}],
    ids=["not known of the engine", "turned off"],
)
def test_windows_that_an_engine_does_not_keep_are_counted_in_full_and_it_says_so(
    tmp_path: Path, engine: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(VISION_AND_WINDOWS))
    file = config(tmp_path, engine, source=str(tmp_path), tensor_parallel=1)
    (sized,) = json.loads(run(file, *on("l40s-x8-plx"), "--json").stdout)["models"]["large"]["on"].values()
    assert "layers with a sliding window are counted as full ones: a refusal may be too strict" in sized["notes"]
    assert sized["kv_bytes_per_gpu"] / sized["kv_tokens"] == pytest.approx(24 * 2 * 16 * 128 * 2, rel=0.01)


def test_a_folder_with_mistrals_own_file_alone_is_planned(tmp_path: Path) -> None:
    params = {"dim": 1024, "n_layers": 8, "hidden_dim": 4096, "n_heads": 8, "n_kv_heads": 4, "vocab_size": 32000}
    (tmp_path / "params.json").write_text(json.dumps(params))
    engine = {"max_model_len": 4096, "extra_args": ["--config-format", "mistral"]}
    file = config(tmp_path, engine, source=str(tmp_path), tensor_parallel=1)
    assert "large: 0.19 B parameters on 1x L40S" in run(file, *on("one-gpu")).stdout


DRAFT = {"method": "draft_model", "model": "org/draft", "num_speculative_tokens": 5}


@pytest.mark.parametrize(
    ("change", "recording", "parts"),
    [
        pytest.param({"tensor_parallel": 1, "engine": {"quantization": "fp8"}}, "h200-x4-real", (), id="none"),
        pytest.param({}, "h200-x4-real", (), id="nor over measured links"),
        pytest.param({}, "l40s-x8-plx", ("links are not measured (assumed: PCIe 4.0 x16",), id="assumed links"),
        pytest.param(
            {"engine": {"quantization": "awq", "max_model_len": 4096, "speculative": DRAFT}},
            "l40s-x8-plx",
            ("leave speculation out", "links are not measured"),
            id="speculation",
        ),
    ],
)
def test_ceilings_say_what_they_leave_out_and_assume(
    tmp_path: Path, change: dict[str, Any], recording: str, parts: tuple[str, ...]
) -> None:
    file = config(tmp_path, **change)
    shown = " ".join(run(file, *on(recording)).stdout.split())
    sizes = json.loads(run(file, *on(recording), "--json").stdout)["models"]["large"]["on"]
    (said,) = (size["caveats"] for size in sizes.values())
    assert len(said) == len(parts)
    for part, caveat in zip(parts, said, strict=True):
        assert part in caveat
        assert caveat in shown
    assert "tok/J at TDP" in shown


def test_a_model_split_both_ways_is_compared_as_it_is_configured(tmp_path: Path) -> None:
    shown = run(config(tmp_path, pipeline_parallel=2), *on("l40s-x8-plx")).stdout
    assert re.findall(r"(?:TP|PP)=\d(?: PP=\d)?(?= +\u2502)", shown) == ["TP=4", "PP=4", "TP=2 PP=2"]


def timed(a: str, b: str, bytes_per_s: float, verdict: Verdict = Verdict.OK) -> Link:
    seen = LinkMeasurement(verdict, a_to_b_bytes_per_s=bytes_per_s, b_to_a_bytes_per_s=2 * bytes_per_s, latency_s=1e-5)
    return Link(a, b, None, measured=seen)


def host(name: str, *links: Link, card: str = "NVIDIA L40S") -> Host:
    uuids = dict.fromkeys(uuid for link in links for uuid in (link.a, link.b))
    return Host(name, tuple(Gpu(uuid, index, card) for index, uuid in enumerate(uuids)), links)


def test_the_link_is_that_of_the_best_working_pair_of_the_card_on_any_host() -> None:
    fleet = [
        host("slow", timed("a", "b", 10e9), timed("a", "c", 40e9, Verdict.BROKEN)),
        host("fast", timed("d", "e", 21e9), timed("d", "f", 12e9)),
        host("other", timed("g", "h", 390e9), card="NVIDIA H200"),
    ]
    found = measured_link(fleet, need_accelerator("L40S"))
    assert found is not None
    assert (found.bytes_per_s, found.source) == (21e9, "measured on the best pair of fast")
    assert measured_link(fleet, need_accelerator("H100")) is None


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        pytest.param(2, "assumed: 12 NVLink links by label, 262 GB/s", id="bridged pairs"),
        pytest.param(4, "assumed: PCIe 4.0 x16", id="a four has no bridge across"),
    ],
)
def test_bridges_that_the_recording_shows_are_counted_with(tmp_path: Path, gpus: int, said: str) -> None:
    matrix = ["X NV12 SYS SYS", "NV12 X SYS SYS", "SYS SYS X NV12", "SYS SYS NV12 X"]
    cards = [{"uuid": f"GPU-{i}", "index": i, "name": "NVIDIA A100 80GB PCIe"} for i in range(4)]
    path = tmp_path / "recording.json"
    hosts = [{"name": "bridged", "gpus": cards, "matrix": matrix}]
    path.write_text(json.dumps({"raylane_topology": 1, "note": "", "hosts": hosts}))
    done = run(config(tmp_path, tensor_parallel=gpus), "--from", str(path), "--json")
    (caveat,) = json.loads(done.stdout)["models"]["large"]["on"]["A100-80GB-PCIe"]["caveats"]
    assert said in caveat


def test_the_guide_counts_the_recordings_gpus_and_its_measured_links() -> None:
    asked = ("--suggest", "builtin:llama-3-70b-shape")
    here = json.loads(run(*asked, *on("h200-x4-real"), "--json").stdout)
    anywhere = json.loads(run(*asked, "--gpu", "H200", "--json").stdout)
    assert (here["gpu"], here["link"]) == ("H200-SXM", "measured on the best pair of vm")
    assert anywhere["link"].startswith("assumed")

    def on_two(guide: dict[str, Any]) -> list[float]:
        return [item["output_tokens_per_s_ceiling"] for item in guide["options"] if item["fits"] and item["gpus"] == 2]

    assert on_two(here)
    assert on_two(here) != on_two(anywhere)
    alone = json.loads(run(*asked, *on("one-gpu"), "--json").stdout)
    assert {option["gpus"] for option in alone["options"]} == {1}
    assert alone["reason"] == "nothing up to 1 GPUs holds 8 sequences"


def test_the_guide_is_for_the_context_that_is_asked_for() -> None:
    asked = ("--suggest", "builtin:llama-3-8b-shape", "--gpu", "L40S", "--json")
    short, usual = (json.loads(run(*asked, *more).stdout) for more in (("--max-model-len", "2048"), ()))
    assert (short["max_model_len"], usual["max_model_len"]) == (2048, 4096)
    assert short["options"][0]["full_contexts"] == pytest.approx(2 * usual["options"][0]["full_contexts"], abs=1)


def test_the_guide_of_a_quantized_checkpoint_has_its_format_alone(tmp_path: Path) -> None:
    of_meta = checkpoint(tmp_path, {"quant_method": "fbgemm_fp8"})
    data = json.loads(run("--suggest", of_meta, "--gpu", "L40S", "--json").stdout)
    assert {option["format"] for option in data["options"]} == {"fbgemm_fp8"}
    assert data["best"]["gpus"] == 1
    with pytest.raises(UsageError, match=f"--suggest {tmp_path}: quantization: 'mxfp4' cannot be sized"):
        run("--suggest", checkpoint(tmp_path, {"quant_method": "mxfp4"}), "--gpu", "L40S")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        pytest.param((), "give a deployment config, or --suggest", id="nothing"),
        pytest.param((str(MIXED), "--suggest", "x"), "give a deployment config, or --suggest", id="both"),
        pytest.param(("--suggest", "builtin:llama-3-8b-shape"), "--gpu L40S", id="a guide without a card"),
        pytest.param(("--suggest", "builtin:llama-3-8b-shape", "--gpu", "L50"), "'L50'", id="an unknown card"),
        pytest.param(("--suggest", "/absent", "--gpu", "L40S"), "/absent: no readable config.json", id="no model"),
        pytest.param((str(MIXED), "--gpu", "L40S"), "--gpu L40S goes with --suggest", id="a card beside a config"),
        pytest.param(
            (str(MIXED), "--max-model-len", "9"), "--max-model-len 9 goes with", id="a length beside a config"
        ),
        pytest.param(
            ("--suggest", "builtin:llama-3-8b-shape", "--gpu", "L40S", "--max-model-len", "9000"),
            "--max-model-len 9000: builtin:llama-3-8b-shape has 8,192 positions",
            id="a length beyond the positions",
        ),
        pytest.param(
            ("--suggest", "builtin:llama-3-8b-shape", "--gpu", "L40S", *on("h200-x4-real")),
            "--gpu L40S: is on none of the hosts of --from (NVIDIA H200)",
            id="a guide for a card that the recording lacks",
        ),
        pytest.param(
            ("--suggest", "builtin:llama-3-8b-shape", *on("none")), "(the hosts have no GPU)", id="a guide without GPUs"
        ),
        pytest.param(
            (str(MIXED), *on("one-gpu"), *on("l40s-x8-plx"), *on("one-gpu")),
            "host single is there more than once",
            id="a recording twice",
        ),
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
