"""What each accelerator can do at most: memory, bandwidth, arithmetic, power. Data lives in accelerators.yaml."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt

from raylane.cluster.errors import UsageError
from raylane.cluster.strict import StrictModel

_DATA = Path(__file__).with_name("accelerators.yaml")
ADDITIONS = "RAYLANE_ACCELERATORS"  # environment: a user's own catalogue file, for every process that sees it


@dataclass(frozen=True)
class Accelerator:
    """One kind of accelerator. Rates are peaks without sparsity; None means absent or not published."""

    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    bf16_flops: float
    fp8_flops: float | None
    tdp_w: float | None
    interconnect: str
    nvlink_bytes_per_s: float | None
    source: str
    verified: bool
    nvml_names: tuple[str, ...] = ()
    memory_from: str = "NVML"


class AcceleratorEntry(StrictModel):
    """One entry of a catalogue file."""

    name: str
    """Short name used in configs and reports."""
    nvml_names: tuple[str, ...] = ()
    """Names the driver gives to this card."""
    memory_mib: PositiveInt
    """Memory as the driver reports it; the label of the box overstates it by 3 to 4 %."""
    memory_from: str = "NVML"
    """Where the memory figure comes from."""
    bandwidth_gb_per_s: PositiveFloat
    bf16_tflops: PositiveFloat
    fp8_tflops: PositiveFloat | None = None
    tdp_w: PositiveFloat | None = None
    interconnect: str
    nvlink_gb_per_s: PositiveFloat | None = None
    source: str = Field(min_length=1)
    """Where the figures come from; every entry names it."""
    verified: bool = False
    """True when the rates stand in the vendor's data sheet."""

    def accelerator(self) -> Accelerator:
        """The entry in base units (bytes, bytes per second, operations per second)."""
        return Accelerator(
            name=self.name,
            memory_bytes=self.memory_mib * 2**20,
            bandwidth_bytes_per_s=self.bandwidth_gb_per_s * 1e9,
            bf16_flops=self.bf16_tflops * 1e12,
            fp8_flops=None if self.fp8_tflops is None else self.fp8_tflops * 1e12,
            tdp_w=self.tdp_w,
            interconnect=self.interconnect,
            nvlink_bytes_per_s=None if self.nvlink_gb_per_s is None else self.nvlink_gb_per_s * 1e9,
            source=self.source,
            verified=self.verified,
            nvml_names=self.nvml_names,
            memory_from=self.memory_from,
        )


class CatalogFile(StrictModel):
    """A catalogue file: the shipped one, or a user's additions."""

    accelerators: tuple[AcceleratorEntry, ...]


def load_catalog(additions: Path | None = None) -> tuple[Accelerator, ...]:
    """The shipped catalogue; entries of `additions` come first and replace shipped ones of the same name.

    Without `additions` they are read from the file that RAYLANE_ACCELERATORS names, if it does. UsageError for a file
    that cannot be read or is not a catalogue.
    """
    given = os.environ.get(ADDITIONS)
    if additions is None and given:
        additions = Path(given)
    own = () if additions is None else _read(additions)
    replaced = {item.name.casefold() for item in own}
    return own + tuple(item for item in _read(_DATA) if item.name.casefold() not in replaced)


@cache
def _read(path: Path) -> tuple[Accelerator, ...]:
    found = tuple(entry.accelerator() for entry in CatalogFile.from_yaml(path).accelerators)
    names = [item.name.casefold() for item in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{path}: accelerators: the name {name!r} stands there {names.count(name)} times")
    return found


def find_accelerator(nvml_name: str, catalog: Iterable[Accelerator] | None = None) -> Accelerator | None:
    """The entry for a driver's name ("NVIDIA L40S") or a short name ("L40S"), whatever the case.

    None for a card the catalogue does not know: serving works on it, but nothing can be said about its ceilings.
    `unknown_accelerator_message` is the sentence to show then.
    """
    wanted = _key(nvml_name)
    for item in load_catalog() if catalog is None else catalog:
        if wanted in {_key(name) for name in (item.name, *item.nvml_names)}:
            return item
    return None


def need_accelerator(name: str, catalog: Iterable[Accelerator] | None = None) -> Accelerator:
    """Like find_accelerator, for names a user typed: UsageError with the known names when there is none."""
    items = load_catalog() if catalog is None else tuple(catalog)
    found = find_accelerator(name, items)
    if found is None:
        known = ", ".join(item.name for item in items)
        raise UsageError(
            f"gpu {name!r} is not in the accelerator catalogue (known: {known}); add it in a file, see {ADDITIONS}"
        )
    return found


def unknown_accelerator_message(nvml_name: str) -> str:
    """What to tell the user about a card without an entry."""
    return f"{nvml_name}: not in the accelerator catalogue; ceilings and sizing are left out until an entry is added"


def _key(name: str) -> str:
    return name.casefold().removeprefix("nvidia ").replace("_", "-").replace(" ", "-")
