"""The page of the H200 proof says what its JSON files say."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from raylane.cluster.hosts import LinkLevel, Verdict
from raylane.cluster.planner import Want, plan
from raylane.cluster.prices import shipped_prices
from raylane.cluster.recording import load_recording, read_recording
from studies.h200.calibrate import rows
from studies.h200.summary import (
    MODELS,
    TABLES,
    USD_PER_GPU_HOUR,
    roofline_tokens_per_s,
    usd_per_million,
)

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "docs/results/h200"
FIXTURE = ROOT / "tests/fixtures/topology/h200-x4-real.json"
PAGE = (RESULTS / "README.md").read_text()
TEXT = " ".join(PAGE.split())


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", TABLES)
def test_every_table_of_the_page_is_the_one_its_results_give(name: str) -> None:
    assert "\n".join(TABLES[name](RESULTS)) in PAGE


def cells(begins: str) -> list[str]:
    """The cells of the only table row that begins so."""
    (found,) = (line for line in PAGE.splitlines() if line.startswith(f"| {begins} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def numbers(text: str) -> list[float]:
    return [float(figure.replace(",", "")) for figure in re.findall(r"-?\d[\d,]*\.?\d*", text)]


def test_hardware_figures() -> None:
    part = result("hardware")
    copies = list(part["copy_read_plus_write_bytes_per_s"].values())
    pairs = list(part["gpu_to_gpu_bytes_per_s"].values())
    assert {f"{rate / 1e12:.2f}" for rate in copies} == {"4.28"}
    assert cells("1 hardware")[2].startswith("copy 4.28 TB/s, every pair 396.7 GB/s")
    assert f"{min(pairs) / 1e9:.1f} to {max(pairs) / 1e9:.1f} GB/s" in TEXT
    assert len(pairs) == 12


def test_overhead_figures() -> None:
    one, _, many = result("overhead")["loads"]
    ratio, added = many["throughput_ratio"], one["added_ttft_ms"]
    shown = numbers(cells("2 overhead")[2])
    assert shown == pytest.approx([ratio["median"], ratio["low"], ratio["high"]], abs=5e-4)
    (row,) = (line for line in PAGE.splitlines() if "TTFT p50 added <=" in line)
    assert numbers(row.split("|")[3]) == pytest.approx([added["median"], added["low"], added["high"]], abs=5e-3)


def test_mixed_figures() -> None:
    part = result("mixed")
    slowest_s = max(replica["started_s"] for replica in part["replicas"])
    shown = numbers(cells("3 mixed")[2])
    assert shown == pytest.approx([part["ready_s"], slowest_s, part["ready_s"] / slowest_s], abs=0.05)
    eight, seventy, both = (case["energy"]["mean_power_w"] for case in part["run"]["cases"])
    assert eight + seventy - both == pytest.approx(490, abs=5)
    e2e_ms = {(c["case"], s["model"]): s["e2e_ms"]["p50"]["value"] for c in part["run"]["cases"] for s in c["streams"]}
    assert e2e_ms["together", "llama-8b"] == pytest.approx(e2e_ms["8b-alone", "llama-8b"], rel=0.003)
    assert e2e_ms["together", "llama-70b"] == pytest.approx(e2e_ms["70b-alone", "llama-70b"], rel=0.003)


def test_scaling_fault_and_link_figures() -> None:
    scaling, fault, links, lone = (result(name) for name in ("scaling", "fault", "links", "mixed"))
    assert numbers(cells("4 scaling")[2]) == pytest.approx([scaling["efficiency_4"]], abs=5e-4)
    assert numbers(cells("6 fault")[2])[:2] == [fault["requests"]["failed"], fault["requests"]["sent"]]
    times = [
        ("its GPU's memory free", "gpu_memory_free_s", 5e-3),
        ("out of the routing table", "out_of_the_table_s", 5e-3),
    ]
    for name, key, close_s in [*times, ("a replacement serving", "replacement_serving_s", 0.05)]:
        assert numbers(cells(name)[1]) == pytest.approx([fault[key]], abs=close_s)
    assert numbers(cells("of them before their first token")[1]) == [
        fault["requests"]["failed_before_their_first_token"]
    ]
    far, near = links["llama-70b-no-p2p"], lone["as_is"]
    ttft = far["ttft_512"]["ttft_p50_ms"] / near["ttft_512"]["ttft_p50_ms"]
    tpot = far["tpot_c32"]["tpot_p50_ms"] / near["tpot_c32"]["tpot_p50_ms"]
    assert f"TTFT {ttft:.2f}x, TPOT at 32 clients {tpot:.2f}x" in cells("5 links")[2]


def test_calibration_figures() -> None:
    part = result("calibration")
    held_out, constants = part["errors_held_out"], part["constants"]
    means = [held_out[key]["mean"] for key in ("tpot", "throughput", "ttft_many_clients")]
    assert re.findall(r"(\d+) %", cells("7 calibration")[2]) == [f"{100 * mean:.0f}" for mean in means]
    shares = constants["bandwidth_share"], constants["compute_share"]
    assert "bandwidth share {:.3f}, compute share {:.3f},".format(*shares) in TEXT
    times_ms = 1e3 * constants["step_overhead_s"], 1e3 * constants["first_token_extra_s"]
    assert "{:.2f} ms a step, {:.2f} ms extra".format(*times_ms) in TEXT


def test_rows_alternate_in_a_fixed_order_whatever_they_measured() -> None:
    found = rows(RESULTS)
    sizes = [(row.tensor_parallel, row.concurrency, row.input_tokens, row.output_tokens) for row in found]
    assert all(before < after for before, after in pairwise(sizes))
    assert [row.use for row in found] == (["fit", "held out"] * len(found))[: len(found)]
    assert all(row.ttft_p50_ms is None for row in found if row.use == "fit" and row.concurrency > 1)
    assert all(row.ttft_p50_ms is not None for row in found if row.use == "held out")
    assert [row.model_dump(mode="json", exclude_none=True) for row in found] == result("calibration")["rows"]


def test_dollars_are_those_of_the_price_book() -> None:
    assert shipped_prices().get("h200-nebius").usd_per_gpu_hour == USD_PER_GPU_HOUR
    assert usd_per_million(1, 1e6 / 3600) == pytest.approx(USD_PER_GPU_HOUR)  # a million tokens in one GPU-hour


@pytest.mark.parametrize("model", MODELS)
def test_nothing_measured_is_above_the_roofline(model: str) -> None:
    streams = [stream for case in result("mixed")["run"]["cases"] for stream in case["streams"]]
    replicas = 2 if model == "llama-8b" else 1
    rates = [stream["output_tokens_per_s"] / replicas for stream in streams if stream["model"] == model]
    assert 0.4 < max(rates) / roofline_tokens_per_s(model, 128) < 1.0


def test_the_recording_is_real_and_carries_what_was_measured() -> None:
    (host,) = load_recording(FIXTURE)
    assert load_recording(RESULTS / "topology.json") == [host]
    assert read_recording(FIXTURE).note.startswith("Real:")
    assert {(link.level, link.nvlink_count) for link in host.links} == {(LinkLevel.NVLINK, 18)}
    assert all(link.measured is not None and link.measured.verdict is Verdict.OK for link in host.links)


def test_the_mixed_deployment_fits_the_recorded_host() -> None:
    found = plan(load_recording(FIXTURE), [Want("llama-8b", 1, 2, 2), Want("llama-70b", 2, 1, 1)])
    assert found.fits
    assert sorted(len(placed.uuids) for placed in found.placements) == [1, 1, 2]
    assert len({uuid for placed in found.placements for uuid in placed.uuids}) == 4


def test_the_second_measurement_at_256_clients() -> None:
    (load,) = result("overhead-256")["loads"]
    ratio = load["throughput_ratio"]
    text = (RESULTS / "README.md").read_text()
    assert f"ratio {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})" in text
    assert len(load["first"]) == len(load["second"]) == 4
