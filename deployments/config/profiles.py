"""Named vLLM settings per GPU class and model size. Data lives in profiles.yaml.

A config's engine block may say `profile: NAME`; its own keys win over the profile's, and vLLM's defaults fill the rest.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from raylane.cluster.errors import UsageError
from raylane.cluster.strict import StrictModel

_DATA = Path(__file__).with_name("profiles.yaml")


class Profile(StrictModel):
    """Engine settings for one kind of use, and the GPUs and model size they are checked for."""

    purpose: str = Field(min_length=1)
    shape: str
    """Builtin shape of the model size; any checkpoint of that size will do."""
    positions: PositiveInt | None = None
    """Positions the checkpoint must have, where the builtin shape has fewer."""
    weights: Literal["bf16", "fp8", "awq"]
    """What the checkpoint must hold."""
    gpus: tuple[str, ...] = Field(min_length=1)
    """Cards it is for, by their names in the accelerator catalogue."""
    tensor_parallel: PositiveInt = 1
    engine: dict[str, Any]
    """Keys of `engine: {kind: vllm}`."""
    trades: str = Field(min_length=1)
    """What is given up for the purpose."""
    source: str = Field(min_length=1)
    """Where the numbers come from."""
    refused: dict[str, Any] = Field(default_factory=dict)
    """Keys of a published recipe that do not start, shown beside the profile with the reason."""

    @property
    def quantization(self) -> str | None:
        """The checkpoint's format in sizing's words."""
        return None if self.weights == "bf16" else self.weights


class ProfileFile(StrictModel):
    """The file of profiles."""

    profiles: dict[str, Profile]


@cache
def profiles() -> Mapping[str, Profile]:
    """All profiles by name, in the order of the file."""
    return ProfileFile.from_yaml(_DATA).profiles


def need_profile(name: str) -> Profile:
    """The profile of this name. UsageError listing the known ones."""
    if name not in profiles():
        raise UsageError(f"profile: {unknown_profile(name)}")
    return profiles()[name]


def unknown_profile(name: object) -> str:
    return f"no profile {name!r}; known: {', '.join(profiles())}"


def profile_of(engine: object) -> Profile | None:
    """The profile an engine block names; None where it names none, or one that does not exist."""
    name = engine.get("profile") if isinstance(engine, Mapping) else None
    return profiles().get(name) if isinstance(name, str) else None


def with_profile(engine: Mapping[str, Any]) -> dict[str, Any]:
    """The block with its profile's settings in place of the name; its own keys win. ValueError for an unknown name."""
    own = {key: value for key, value in engine.items() if key != "profile"}
    if engine.get("profile") is None:
        return own
    found = profile_of(engine)
    if found is None:
        raise ValueError(unknown_profile(engine["profile"]))
    return {**found.engine, **own}
