"""The hardware catalogue against the vendors' figures, and what users may add to it."""

from pathlib import Path

import pytest

from raylane.cluster.catalog import find_accelerator, load_catalog, need_accelerator
from raylane.cluster.errors import UsageError


@pytest.mark.parametrize(
    ("nvml_name", "name", "gb_per_s", "bf16_tflops", "fp8_tflops", "tdp_w"),
    [
        pytest.param("NVIDIA L40S", "L40S", 864, 362.05, 733, 350, id="L40S as its driver names it"),
        pytest.param("l40s", "L40S", 864, 362.05, 733, 350, id="L40S typed in small letters"),
        pytest.param("NVIDIA L4", "L4", 300, 121, 242, 72, id="L4 is not L40S"),
        pytest.param("NVIDIA A100-SXM4-80GB", "A100-80GB-SXM", 2039, 312, None, 400, id="A100 SXM has no FP8"),
        pytest.param("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe", 1935, 312, None, 300, id="A100 PCIe is slower"),
        pytest.param("NVIDIA H100 PCIe", "H100-PCIe", 2000, 756, 1513, 350, id="H100 PCIe"),
        pytest.param("NVIDIA H100 80GB HBM3", "H100-SXM", 3350, 989, 1979, 700, id="H100 SXM"),
        pytest.param("NVIDIA H200", "H200-SXM", 4800, 989, 1979, 700, id="H200"),
        pytest.param("NVIDIA B200", "B200", 8000, 2250, 4500, 1000, id="B200"),
        pytest.param("MI300X", "MI300X", 5300, 1307, 2610, 750, id="MI300X"),
    ],
)
def test_entries_carry_dense_rates(
    nvml_name: str, name: str, gb_per_s: float, bf16_tflops: float, fp8_tflops: float | None, tdp_w: float
) -> None:
    found = need_accelerator(nvml_name)
    assert found.name == name
    assert found.bandwidth_bytes_per_s == gb_per_s * 1e9
    assert found.bf16_flops == bf16_tflops * 1e12
    assert found.fp8_flops == (None if fp8_tflops is None else fp8_tflops * 1e12)
    assert found.tdp_w == tdp_w


@pytest.mark.parametrize(
    ("name", "memory_bytes"),
    [
        pytest.param("L40S", 48_305_799_168, id="L40S reports 46,068 MiB, not 48 GB of the label"),
        pytest.param("H200", 150_754_820_096, id="H200 reports 143,771 MiB"),
    ],
)
def test_memory_is_what_the_driver_reports(name: str, memory_bytes: int) -> None:
    assert need_accelerator(name).memory_bytes == memory_bytes


def test_l40s_has_no_nvlink_and_every_entry_names_its_source() -> None:
    assert need_accelerator("L40S").nvlink_bytes_per_s is None
    assert all(item.source for item in load_catalog())
    assert not need_accelerator("A10G").verified


def test_an_unknown_card_is_absent_not_guessed() -> None:
    assert find_accelerator("NVIDIA RTX 9999") is None
    with pytest.raises(UsageError, match=r"RTX 9999.*L40S"):
        need_accelerator("NVIDIA RTX 9999")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(
        "accelerators:\n"
        "- {name: Inferentia3, memory_mib: 40000, bandwidth_gb_per_s: 900, bf16_tflops: 200, interconnect: own, "
        "source: a quote}\n"
        "- {name: l40s, memory_mib: 45000, bandwidth_gb_per_s: 800, bf16_tflops: 300, interconnect: own, "
        "source: measured}\n"
    )
    return path


def test_a_users_file_adds_and_replaces(own: Path) -> None:
    catalog = load_catalog(own)
    assert need_accelerator("Inferentia3", catalog).verified is False
    assert need_accelerator("NVIDIA L40S", catalog).bandwidth_bytes_per_s == 800e9
    assert len(catalog) == len(load_catalog()) + 1


def test_the_environment_names_a_users_file(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLANE_ACCELERATORS", str(own))
    assert need_accelerator("Inferentia3").bf16_flops == 200e12
    given = tmp_path / "given.yaml"
    given.write_text("accelerators: []\n")
    assert find_accelerator("Inferentia3", load_catalog(given)) is None  # a file that is given counts, not both
    monkeypatch.setenv("RAYLANE_ACCELERATORS", "")
    assert find_accelerator("Inferentia3") is None


def test_a_file_in_the_environment_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLANE_ACCELERATORS", str(tmp_path / "absent.yaml"))
    with pytest.raises(UsageError, match=r"absent\.yaml"):
        need_accelerator("L40S")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("accelerators: [{name: X, memory_mb: 3}]", "memory_mb", id="unknown key"),
        pytest.param("accelerators: []\nother: 1", "other", id="unknown top-level key"),
    ],
)
def test_a_wrong_file_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(text)
    with pytest.raises(UsageError, match=rf"own\.yaml.*{message}"):
        load_catalog(own)


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    entry = "{name: X, memory_mib: 1, bandwidth_gb_per_s: 1, bf16_tflops: 1, interconnect: a, source: b}"
    own = tmp_path / "own.yaml"
    own.write_text(f"accelerators: [{entry}, {entry}]")
    with pytest.raises(UsageError, match="2 times"):
        load_catalog(own)
