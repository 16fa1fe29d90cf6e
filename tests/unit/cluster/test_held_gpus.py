"""What an engine's processes hold against its lease; the reader against a stand-in for the pynvml module."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from raylane.cluster.held_gpus import GpuProcesses, HeldGpu, held_gpus, held_gpus_problem, read_gpu_processes

TREE = frozenset({100, 101})
A, B, C = (HeldGpu(uuid, f"0000:{uuid}1:00.0") for uuid in "ABC")


def listed(**pids: set[int] | None) -> list[GpuProcesses]:
    return [
        GpuProcesses(gpu, None if (found := pids.get(gpu.uuid, set())) is None else frozenset(found))
        for gpu in (A, B, C)
    ]


@pytest.mark.parametrize(
    ("pids", "host_pids", "held", "problem"),
    [
        pytest.param({"A": {100}, "B": {101, 7}}, True, (A, B), None, id="each leased GPU has the engine"),
        pytest.param({"A": {100}, "B": {101}, "C": {7}}, True, (A, B), None, id="others elsewhere do not matter"),
        pytest.param(
            {"A": {100}, "C": {101}},
            True,
            (A, C),
            "the engine is on C (0000:C1:00.0), which it did not lease; the engine is not on B, which it leased",
            id="one on the wrong GPU",
        ),
        pytest.param({"A": {100}}, True, (A,), "the engine is not on B, which it leased", id="one is missing"),
        pytest.param({}, True, (), "the engine is not on A, B, which it leased", id="it is on none"),
        pytest.param({"A": {100}, "B": None}, True, None, None, id="a leased GPU that does not tell"),
        pytest.param({"A": {100}, "B": {101}, "C": None}, True, (A, B), None, id="another GPU that does not tell"),
        pytest.param({"A": {7}, "B": {8}}, False, None, None, id="the pids of another namespace"),
        pytest.param({"A": {100}, "C": {101}}, False, None, None, id="pids that are the same by chance"),
        pytest.param({"A": {100}, "B": {101}}, False, (A, B), None, id="a container that sees its own pids"),
    ],
)
def test_lease_against_what_is_held(
    pids: dict[str, set[int] | None], host_pids: bool, held: tuple[HeldGpu, ...] | None, problem: str | None
) -> None:
    found = held_gpus(("A", "B"), TREE, listed(**pids), host_pids=host_pids)
    assert found == held
    assert held_gpus_problem(("A", "B"), found) == problem


def test_without_nvml_nothing_is_known() -> None:
    assert held_gpus(("A",), TREE, (), host_pids=True) is None


class Library:
    """NVML with two GPUs; functions named in `errors` raise that error for GPU 1, or altogether."""

    def __init__(self, **errors: int) -> None:
        self._errors = errors
        self.open = 0

    def __getattr__(self, name: str) -> Any:
        assert hasattr(pynvml, name), f"pynvml has no {name}"
        answers: dict[str, Callable[..., Any]] = {
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
            "nvmlDeviceGetPciInfo": lambda handle: SimpleNamespace(busId=f"0000:{handle}a:00.0"),
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [SimpleNamespace(pid=40 + handle)],
        }

        def answer(*args: Any) -> Any:
            if name in self._errors and args in ((), (1,)):
                raise pynvml.NVMLError(self._errors[name])
            return answers[name](*args)

        return answer

    def nvmlInit(self) -> None:
        if "nvmlInit" in self._errors:
            raise pynvml.NVMLError(self._errors["nvmlInit"])
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        pytest.param({}, [("GPU-0", "0000:0A:00.0", {40}), ("GPU-1", "0000:1A:00.0", {41})], id="both answer"),
        pytest.param(
            {"nvmlDeviceGetComputeRunningProcesses": pynvml.NVML_ERROR_NO_PERMISSION},
            [("GPU-0", "0000:0A:00.0", {40}), ("GPU-1", "0000:1A:00.0", None)],
            id="one does not tell its processes",
        ),
        pytest.param(
            {"nvmlDeviceGetComputeRunningProcesses": pynvml.NVML_ERROR_GPU_IS_LOST},
            [("GPU-0", "0000:0A:00.0", {40})],
            id="one is lost",
        ),
        pytest.param({"nvmlDeviceGetCount": pynvml.NVML_ERROR_UNINITIALIZED}, [], id="the library stops working"),
        pytest.param({"nvmlInit": pynvml.NVML_ERROR_LIBRARY_NOT_FOUND}, [], id="no driver"),
    ],
)
def test_reading_the_processes_of_each_gpu(errors: dict[str, int], expected: list[tuple[str, str, Any]]) -> None:
    library = Library(**errors)
    found = read_gpu_processes(library, Path("/nonexistent"))
    assert [(each.gpu.uuid, each.gpu.pci_bus_id, each.pids) for each in found] == expected
    assert library.open == 0
