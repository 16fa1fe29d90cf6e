"""The step model's constants for each GPU, as data with their origin."""

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat

from raylane.cluster.catalog import Accelerator
from raylane.cluster.errors import UsageError
from raylane.cluster.strict import StrictModel
from raylane.deployments.simulator.step_model import StepConstants

_DATA = Path(__file__).with_name("constants.yaml")


class ConstantsEntry(StrictModel):
    """Constants of one GPU and where they come from."""

    gpu: str
    """Name in the accelerator catalogue, or `default`."""
    bandwidth_share: float = Field(gt=0, le=1)
    compute_share: float = Field(gt=0, le=1)
    step_overhead_ms: NonNegativeFloat
    first_token_extra_ms: NonNegativeFloat
    trust: Literal["calibrated", "borrowed"]
    fitted_on: str
    held_out_error: str

    def constants(self) -> StepConstants:
        """The entry in seconds."""
        return StepConstants(
            bandwidth_share=self.bandwidth_share,
            compute_share=self.compute_share,
            step_overhead_s=self.step_overhead_ms / 1e3,
            first_token_extra_s=self.first_token_extra_ms / 1e3,
        )


class ConstantsFile(StrictModel):
    """A file of constants: the shipped one, or the output of `raylane calibrate`."""

    constants: tuple[ConstantsEntry, ...]


def constants_for(gpu: Accelerator, path: Path | None = None) -> ConstantsEntry:
    """The entry for a GPU, else the borrowed default. With `path` that file alone decides."""
    entries = ConstantsFile.from_yaml(path or _DATA).constants
    for wanted in (gpu.name, "default"):
        for entry in entries:
            if entry.gpu.casefold() == wanted.casefold():
                return entry
    raise UsageError(f"{path or _DATA}: constants: no entry for {gpu.name!r} and none named 'default'")
