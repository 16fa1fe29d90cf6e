import pytest

from raylane.cluster.affinity import cpu_list, engine_cpus
from raylane.cluster.hosts import Gpu


def gpus(*affinities: tuple[int, ...] | None) -> list[Gpu]:
    return [Gpu(f"GPU-{i}", i, "NVIDIA L40S", cpu_affinity=cpus) for i, cpus in enumerate(affinities)]


@pytest.mark.parametrize(
    ("affinities", "allowed", "expected"),
    [
        pytest.param([(0, 1)], {0, 1, 2, 3}, (0, 1), id="the CPUs of its node"),
        pytest.param([(0, 1), (2, 3)], set(range(8)), (0, 1, 2, 3), id="those of both nodes"),
        pytest.param([(0, 1, 2, 3)], {1, 2, 9}, (1, 2), id="only those that it may use"),
        pytest.param([(4, 5)], {0, 1}, None, id="none that it may use: no change"),
        pytest.param([(0, 1), None], {0, 1, 2}, None, id="a GPU that does not say: no change"),
        pytest.param([(0, 1, 2, 3)], {1, 2}, None, id="all that it may use: no change"),
        pytest.param([], {0, 1}, None, id="no GPU: no change"),
    ],
)
def test_engine_cpus(
    affinities: list[tuple[int, ...] | None], allowed: set[int], expected: tuple[int, ...] | None
) -> None:
    assert engine_cpus(gpus(*affinities), allowed) == expected


@pytest.mark.parametrize(
    ("cpus", "text"),
    [
        pytest.param((), "", id="none"),
        pytest.param((3,), "3", id="one"),
        pytest.param((0, 1, 2, 8, 10, 11), "0-2,8,10-11", id="runs and single ones"),
        pytest.param((5, 4, 4), "4-5", id="in any order"),
    ],
)
def test_cpu_list(cpus: tuple[int, ...], text: str) -> None:
    assert cpu_list(cpus) == text
