"""Builtin models are the same on every machine, real enough for an engine, and built once however many ask."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment

from raylane.cluster.errors import UsageError
from raylane.deployments.config.builtin import CONFIGS, SPECIAL_TOKENS, cache_folder, ensure_model, llama_config

pytestmark = pytest.mark.process

BUILDER = "import sys; from raylane.deployments.config.builtin import ensure_model; print(ensure_model(sys.argv[1]))"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYLANE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return Path(ensure_model("builtin:tiny-llama"))


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_two_builds_are_the_same_bytes_also_by_processes_that_race(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLANE_CACHE", str(tmp_path))
    command = [sys.executable, "-c", BUILDER, "builtin:tiny-llama"]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = {process.communicate()[0].strip() for process in racing}
    assert [process.returncode for process in racing] == [0, 0]
    assert folders == {str(tmp_path / "models" / "tiny-llama-v2")}
    assert hashes(Path(folders.pop())) == hashes(tiny)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [".lock", "tiny-llama-v2"]


def test_what_is_there_is_not_built_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLANE_CACHE", str(tiny.parents[1]))
    before = {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()}
    assert ensure_model("builtin:tiny-llama") == str(tiny)
    assert {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()} == before


def test_the_tokenizer_has_exactly_the_models_vocabulary(tiny: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    config = read(tiny / "config.json")
    assert tokenizer.get_vocab_size() == config["vocab_size"] == 512
    assert sorted(tokenizer.get_vocab().values()) == list(range(512))
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [256, 257, 258, 259, 260]
    assert (config["bos_token_id"], config["eos_token_id"]) == (256, 257)


@pytest.mark.parametrize(
    "text", ["The gateway picks the replica.", "é漢字🙂 \x00\t\r\n", " leading and trailing  ", ""]
)
def test_every_text_comes_back_from_its_tokens(tiny: Path, text: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_merges_make_known_words_shorter_than_their_bytes(tiny: Path) -> None:
    from tokenizers import Tokenizer

    text = "The gateway picks the replica with the least outstanding requests"
    assert len(Tokenizer.from_file(str(tiny / "tokenizer.json")).encode(text).ids) < len(text) / 2


def test_the_chat_template_frames_every_turn(tiny: Path) -> None:
    template = Environment(autoescape=False).from_string(read(tiny / "tokenizer_config.json")["chat_template"])  # noqa: S701
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    text = template.render(messages=turns, add_generation_prompt=True)
    assert text == (
        "<|begin|><|header|>system<|header_end|>\nbe brief<|turn_end|>"
        "<|header|>user<|header_end|>\nhi<|turn_end|><|header|>assistant<|header_end|>\n"
    )
    assert template.render(messages=turns, add_generation_prompt=False).endswith("hi<|turn_end|>")


def test_the_weights_are_those_of_the_config(tiny: Path) -> None:
    from safetensors import safe_open

    config = read(tiny / "config.json")
    with safe_open(str(tiny / "model.safetensors"), framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
        head = file.get_tensor("lm_head.weight").float()
    assert shapes["model.embed_tokens.weight"] == (512, 256)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (2 * 64, 256)
    assert shapes["model.layers.1.mlp.down_proj.weight"] == (256, 512)
    assert len(shapes) == 3 + 9 * config["num_hidden_layers"]
    assert head.std().item() == pytest.approx(config["initializer_range"], rel=0.05)


def test_published_sizes_of_the_shapes() -> None:
    """Parameters of Llama-3 8B and 70B as published: 8.03 and 70.6 billion (Llama 3 model card)."""
    for name, billions in (("llama-3-8b-shape", 8.03), ("llama-3-70b-shape", 70.55)):
        assert parameters(CONFIGS[name]) / 1e9 == pytest.approx(billions, rel=0.002)


def parameters(config: dict[str, Any]) -> int:
    from raylane.deployments.config.builtin import _weight_shapes

    return sum(math.prod(shape) for shape in _weight_shapes(config).values())


def test_a_shape_has_a_full_tokenizer_and_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenizers import Tokenizer

    monkeypatch.setenv("RAYLANE_CACHE", str(tmp_path))
    folder = Path(ensure_model("builtin:llama-3-8b-shape"))
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == 128256
    assert not list(folder.glob("*.safetensors"))


def test_hub_ids_and_folders_are_left_alone() -> None:
    assert ensure_model("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"
    assert ensure_model("/models/x") == "/models/x"


def test_an_unknown_builtin_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'builtin:huge'.*builtin:tiny-llama"):
        ensure_model("builtin:huge")


def test_where_models_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYLANE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache-of-user")
    assert cache_folder() == Path("/cache-of-user/raylane")
    monkeypatch.setenv("RAYLANE_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")


def test_a_config_of_the_family_keeps_its_other_values() -> None:
    changed = llama_config(hidden_size=1)
    assert (changed["hidden_size"], changed["vocab_size"]) == (1, 128256)
