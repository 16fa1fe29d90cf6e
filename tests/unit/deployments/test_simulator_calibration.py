"""The step model against closed forms and measurements, and the fit of its constants."""

from pathlib import Path

import pytest

from raylane.cluster.catalog import need_accelerator
from raylane.cluster.errors import UsageError
from raylane.deployments.config.builtin import CONFIGS
from raylane.deployments.simulator.build import build_engine
from raylane.deployments.simulator.calibration import (
    H200_ROWS,
    MeasuredFile,
    MeasuredRow,
    calibrate,
    compare_rows,
    read_rows,
)
from raylane.deployments.simulator.constants import constants_for
from raylane.deployments.simulator.loads import closed_loop
from raylane.deployments.simulator.replica import EngineModel
from raylane.deployments.simulator.step_model import StepConstants, step_model
from raylane.deployments.sizing.checkpoint import read_model_config
from raylane.deployments.sizing.fit import EngineSettings
from raylane.deployments.sizing.model_facts import model_facts
from raylane.deployments.sizing.roofline import assumed_link, ceiling, decode_floor_s

LLAMA_8B = model_facts(CONFIGS["llama-3-8b-shape"])
LLAMA_70B = model_facts(CONFIGS["llama-3-70b-shape"])
L40S = need_accelerator("L40S")
SHARES = StepConstants(bandwidth_share=0.8, compute_share=0.7, step_overhead_s=0.0, first_token_extra_s=0.0)


def engine_of(constants: StepConstants) -> EngineModel:
    return build_engine(LLAMA_8B, L40S, EngineSettings(), constants, prefix_caching=False)


def test_decoding_alone_takes_the_step_floor_over_the_bandwidth_share() -> None:
    found = closed_loop(engine_of(SHARES), concurrency=1, requests=1, input_tokens=100, output_tokens=201)
    floor_s = decode_floor_s(LLAMA_8B, L40S, EngineSettings(), 1, 200.5, None)
    assert found.tpot_p50_s == pytest.approx(floor_s / 0.8, rel=1e-6)


def test_a_perfect_engine_stays_below_the_ceiling_and_comes_near_it() -> None:
    perfect = StepConstants(1.0, 1.0, 0.0, 0.0)
    found = closed_loop(engine_of(perfect), concurrency=256, requests=1024, input_tokens=512, output_tokens=256)
    top = ceiling(LLAMA_8B, L40S, EngineSettings(), batch=256, input_tokens=512, output_tokens=256)
    assert 0.8 * top.output_tokens_per_s < found.output_tokens_per_s < top.output_tokens_per_s


def test_two_gpus_add_the_all_reduce_of_every_layer() -> None:
    settings = EngineSettings(quantization="awq", tensor_parallel=2)
    link = assumed_link(L40S)
    model = step_model(LLAMA_70B, L40S, settings, SHARES, link)
    assert model.fixed_s == pytest.approx(160 * 25e-6)
    assert model.token_link_s == pytest.approx(160 * 16384 / 20e9)


def test_the_l40s_constants_give_the_public_runs_they_came_from() -> None:
    entry = constants_for(L40S)
    assert entry.trust == "calibrated"
    engine = engine_of(entry.constants())
    found = closed_loop(engine, concurrency=1, requests=1, input_tokens=547, output_tokens=248)
    assert 0.020 < (found.tpot_p50_s or 0) < 0.0265


def test_the_shipped_h200_constants_are_what_the_three_rows_give() -> None:
    found = calibrate(read_rows([H200_ROWS]))
    shipped = constants_for(need_accelerator("H200")).constants()
    assert found.constants.bandwidth_share == pytest.approx(shipped.bandwidth_share, rel=0.01)
    assert found.constants.compute_share == pytest.approx(shipped.compute_share, rel=0.01)
    assert found.constants.step_overhead_s == pytest.approx(shipped.step_overhead_s, rel=0.05)
    assert found.constants.first_token_extra_s == pytest.approx(shipped.first_token_extra_s, rel=0.05)


def test_held_out_h200_rows_are_within_ten_percent_on_average() -> None:
    rows = read_rows([H200_ROWS])
    assert {row.id for row in rows if row.use == "fit"} == {"8b-c1", "8b-c32", "70b-tp2-c1"}
    comparisons = compare_rows(rows, constants_for(need_accelerator("H200")).constants())
    errors = [abs(item.error) for item in comparisons if item.row.use == "held out"]
    assert len(errors) == 10
    assert sum(errors) / len(errors) < 0.10
    assert max(errors) < 0.15


def test_the_fit_finds_constants_that_made_the_rows() -> None:
    truth = StepConstants(0.75, 0.55, 0.002, 0.008)
    rows = []
    for concurrency in (1, 8, 64):
        row = MeasuredRow(
            id=f"c{concurrency}",
            model="builtin:llama-3-8b-shape",
            gpu="L40S",
            concurrency=concurrency,
            requests=2 * concurrency,
            input_tokens=700,
            output_tokens=100,
            use="fit",
            ttft_p50_ms=1,
            tpot_p50_ms=1,
            output_tokens_per_s=1,
            source="made here",
        )
        made: dict[str, float] = {item.metric: item.simulated for item in compare_rows([row], truth)}
        rows.append(row.model_copy(update=made))
    found = calibrate(rows)
    assert found.constants.bandwidth_share == pytest.approx(0.75, rel=0.02)
    assert found.constants.compute_share == pytest.approx(0.55, rel=0.02)
    assert found.constants.step_overhead_s == pytest.approx(0.002, rel=0.15)
    assert found.mean_error("fit") == pytest.approx(0, abs=0.01)
    assert found.mean_error("held out") is None


def test_an_unknown_gpu_borrows_and_says_so() -> None:
    assert constants_for(need_accelerator("A100")).trust == "borrowed"


def row_text(**changes: str) -> str:
    values = {
        "id": "a",
        "model": "builtin:llama-3-8b-shape",
        "gpu": "L40S",
        "concurrency": "1",
        "requests": "2",
        "input_tokens": "10",
        "output_tokens": "10",
        "use": "fit",
        "tpot_p50_ms": "20",
        "source": "test",
        **changes,
    }
    return "\n- {" + ", ".join(f"{key}: {value}" for key, value in values.items() if value) + "}"


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        pytest.param([row_text(), row_text()], "'a'.*more than once", id="one id twice"),
        pytest.param([row_text(), row_text(id="b", gpu="L4")], "L40S.*", id="two kinds of GPU"),
        pytest.param([row_text(tpot_p50_ms="")], "none of ttft_p50_ms", id="nothing measured"),
        pytest.param([row_text(use="maybe")], "use", id="neither fitted nor held out"),
        pytest.param(
            [row_text(output_tokens="1")], "row a: tpot_p50_ms 20 with output_tokens 1", id="TPOT of one token"
        ),
        pytest.param([row_text(tpot_p50_ms=".inf")], r"rows\.0\.tpot_p50_ms: .*finite", id="an endless time"),
        pytest.param(
            [row_text(), row_text(id="b", input_tokens="9000", use="held out")],
            r"rows\.yaml: row b: 9,000 input and 10 output tokens are more than the positions of the model: 8,192",
            id="longer than the model",
        ),
        pytest.param(
            [row_text(max_model_len="16")],
            r"10 input and 10 output .* max_model_len 16",
            id="longer than it was served",
        ),
        pytest.param([row_text(gpu="NOPE")], r"rows\.yaml: row a: gpu 'NOPE'", id="an unknown GPU"),
        pytest.param(
            [row_text(gpu="L4", gpu_memory_utilization="0.5")], r"rows\.yaml: row a: does not fit on L4", id="too large"
        ),
        pytest.param([" []"], r"rows\.yaml: no rows", id="an empty file"),
    ],
)
def test_wrong_rows_are_refused(tmp_path: Path, texts: list[str], words: str) -> None:
    file = tmp_path / "rows.yaml"
    file.write_text("rows:" + "".join(texts))
    with pytest.raises(UsageError, match=words):
        calibrate(read_rows([file]))


def test_rows_are_simulated_with_the_memory_that_they_were_served_with(tmp_path: Path) -> None:
    file = tmp_path / "rows.yaml"
    model = {"model": "builtin:llama-3.1-70b-shape", "tensor_parallel": "2", "quantization": "awq"}
    sizes = {"input_tokens": "512", "output_tokens": "128", "concurrency": "256", "requests": "256"}
    file.write_text(
        "rows:" + row_text(**model, **sizes) + row_text(**model, **sizes, id="b", gpu_memory_utilization="0.6")
    )
    roomy, tight = compare_rows(read_rows([file]), SHARES)
    assert roomy.simulated > 1.5 * tight.simulated  # with less memory for KV the batch is smaller and so is the TPOT
    file.write_text("rows:" + row_text(**model, max_model_len="131072"))
    with pytest.raises(UsageError, match=r"row a: does not fit on L40S: .*max_model_len is 131,072"):
        read_rows([file])


def test_two_names_of_one_gpu_are_one_gpu() -> None:
    rows = [row if i else row.model_copy(update={"gpu": "H200"}) for i, row in enumerate(read_rows([H200_ROWS]))]
    assert calibrate(rows).gpu == "H200-SXM"


def test_four_constants_need_four_figures(tmp_path: Path) -> None:
    file = tmp_path / "rows.yaml"
    file.write_text("rows:" + row_text())
    with pytest.raises(UsageError, match="at least four"):
        calibrate(MeasuredFile.from_yaml(file).rows)


def test_a_model_that_does_not_fit_is_refused_with_a_way_out() -> None:
    with pytest.raises(UsageError, match=r"L40S.*Nearest that fits: quantization fp8"):
        build_engine(LLAMA_70B, L40S, EngineSettings(tensor_parallel=2), SHARES)


def test_model_configs_come_from_files_and_builtins(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert read_model_config(str(tmp_path)) == {"model_type": "llama"}
    assert read_model_config("builtin:tiny-llama")["num_hidden_layers"] == 2
    with pytest.raises(UsageError, match="nowhere"):
        read_model_config(str(tmp_path / "nowhere"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UsageError, match="list"):
        read_model_config(str(tmp_path / "list.json"))
