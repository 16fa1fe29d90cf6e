"""`raylane profiles`: every profile fits on its cards, the refused recipe is explained, and what is printed."""

import json
import shlex

import pytest
from rich.console import Console

from raylane.cli.profiles import arguments, command_line, fits, listing, profiles_command, refused, show
from raylane.cluster.errors import UsageError
from raylane.deployments.config.profiles import need_profile, profiles
from raylane.deployments.sizing.fit import Fits, Limit, Refusal


@pytest.mark.parametrize("name", profiles())
def test_every_profile_fits_on_every_card_it_is_for(name: str) -> None:
    found = fits(name, need_profile(name))
    assert list(found) == list(need_profile(name).gpus)
    refusals = [f"{card}: {item.reason}" for card, item in found.items() if isinstance(item, Refusal)]
    assert refusals == []


@pytest.mark.parametrize("name", profiles())
def test_every_profile_holds_three_requests_of_its_full_length(name: str) -> None:
    for found in fits(name, need_profile(name)).values():
        assert isinstance(found, Fits)
        assert found.largest_batch(found.settings.max_model_len or 0) >= 3


def test_the_recipe_of_070b_awq_on_one_card_at_085_is_refused_with_what_would_do() -> None:
    (found,) = refused("70b-awq-l40s", need_profile("70b-awq-l40s")).values()
    assert isinstance(found, Refusal)
    assert found.limit is Limit.WEIGHTS
    assert "39.8 GB of weights" in found.reason
    assert found.nearest[0].change == "gpu_memory_utilization 0.95"
    assert need_profile("70b-awq-l40s").engine["gpu_memory_utilization"] == 0.95


@pytest.mark.parametrize("name", profiles())
def test_the_command_line_is_the_engines_own_for_a_shell(name: str) -> None:
    words = shlex.split(command_line(name))
    assert words[:3] == ["vllm", "serve", "MODEL"]
    assert words[3:] == list(arguments(name))[2:]


def test_one_profile_shows_settings_command_fit_and_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    show(Console(width=200), "70b-awq-l40s", need_profile("70b-awq-l40s"))
    printed = capsys.readouterr().out
    for part in (
        "quantization: awq_marlin",
        "--gpu-memory-utilization 0.95",
        "14,352 tokens of context",
        "with gpu_memory_utilization 0.85 on L40S:",
        "does not fit",
        "fits with gpu_memory_utilization 0.95",
    ):
        assert part in printed


def test_an_assumed_draft_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    show(Console(width=200), "8b-speculative", need_profile("8b-speculative"))
    assert "Llama-3.2-1B-Instruct: size unknown, counted as 25%" in capsys.readouterr().out


def test_the_list_has_a_line_for_every_card(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=200).print(listing(profiles()))
    printed = capsys.readouterr().out
    assert [name for name in profiles() if f"\n{name} " not in printed] == []
    assert printed.count("1x H200-SXM") == sum(
        "H200-SXM" in profile.gpus and profile.tensor_parallel == 1 for profile in profiles().values()
    )


def test_json_of_one_and_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    profiles_command("70b-awq-l40s", json_output=True)
    one = json.loads(capsys.readouterr().out)["70b-awq-l40s"]
    assert one["fit"]["L40S"]["kv_tokens"] == 14_352
    assert one["refused_fit"]["L40S"]["nearest"][0]["change"] == "gpu_memory_utilization 0.95"
    profiles_command(None, json_output=True)
    assert list(json.loads(capsys.readouterr().out)) == list(profiles())


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no profile '8b'; known: .*8b-balanced"):
        profiles_command("8b")
