"""Models that need no download: a tiny real Llama, and the exact shapes of Llama-3 8B and 70B without weights.

`builtin:tiny-llama` has real (random) weights and a real byte-level BPE tokenizer with a chat template; it writes
nonsense, quickly. `builtin:llama-3-8b-shape` and `-70b-shape` (and `llama-3.1-`, with 131,072 positions) have the
architecture and a byte tokenizer filled up to the full vocabulary; an engine fills their weights with random numbers
(`load_format: dummy`), at the same cost to run.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from raylane.cluster.errors import UsageError

PREFIX = "builtin:"
VERSION = "2"  # part of the cache folder's name: change it when what is built changes
BEGIN, END, HEADER, HEADER_END, TURN_END = "<|begin|>", "<|end|>", "<|header|>", "<|header_end|>", "<|turn_end|>"
SPECIAL_TOKENS = (BEGIN, END, HEADER, HEADER_END, TURN_END)
CHAT_TEMPLATE = (
    "{{ '" + BEGIN + "' }}{% for message in messages %}"
    "{{ '" + HEADER + "' + message['role'] + '" + HEADER_END + "\n' + message['content'] + '" + TURN_END + "' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '" + HEADER + "assistant" + HEADER_END + "\n' }}{% endif %}"
)
# What the tokenizer of the tiny model learns its merges from.
CORPUS = (
    "A replica holds the weights of a model and answers requests with tokens.",
    "The gateway picks the replica with the least outstanding requests and passes the stream on.",
    "A pair of GPUs on one switch exchanges partial sums faster than a pair across two sockets.",
    "Time to first token, time per output token, throughput, goodput and cost are what a run reports.",
    "The quick brown fox jumps over the lazy dog while the queue drains and the last stream ends.",
)


def llama_config(**changes: Any) -> dict[str, Any]:
    """A config.json of the Llama architecture; the defaults are Llama-3-8B's published values."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 128256,
        **changes,
    }


LONG_CONTEXT = {  # Llama-3.1's published values
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-llama": llama_config(
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_hidden_layers=2,
        max_position_embeddings=2048,
        rope_theta=10000.0,
        vocab_size=512,
    ),
    "llama-3-8b-shape": llama_config(),
    "llama-3-70b-shape": llama_config(
        hidden_size=8192, intermediate_size=28672, num_attention_heads=64, num_hidden_layers=80
    ),
    "llama-3.1-8b-shape": llama_config(max_position_embeddings=131072, rope_scaling=LONG_CONTEXT),
    "llama-3.1-70b-shape": llama_config(
        hidden_size=8192,
        intermediate_size=28672,
        num_attention_heads=64,
        num_hidden_layers=80,
        max_position_embeddings=131072,
        rope_scaling=LONG_CONTEXT,
    ),
}
WITH_WEIGHTS = {"tiny-llama"}


def builtin_config(source: str) -> dict[str, Any]:
    """The config.json of a builtin source. Raises UsageError naming the known ones."""
    name = source.removeprefix(PREFIX)
    if name not in CONFIGS:
        known = ", ".join(PREFIX + known_name for known_name in CONFIGS)
        raise UsageError(f"source: no builtin model {source!r}; known: {known}")
    return CONFIGS[name]


def cache_folder() -> Path:
    """Where built models are kept: $RAYLANE_CACHE, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    return Path(os.environ.get("RAYLANE_CACHE", str(Path(home) / "raylane")))


def ensure_model(source: str) -> str:
    """What an engine is given as its model: hub ids and folders as they are, a builtin's folder built on first use."""
    if not source.startswith(PREFIX):
        return source
    config = builtin_config(source)
    target = cache_folder() / "models" / f"{source.removeprefix(PREFIX)}-v{VERSION}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / ".lock").open("w") as lock:  # several replicas of a host may ask at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
                _build(Path(scratch) / "model", source.removeprefix(PREFIX), config)
                shutil.move(Path(scratch) / "model", target)
    return str(target)


def _build(folder: Path, name: str, config: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 256, "eos_token_id": 257}))
    _write_tokenizer(folder, config["vocab_size"], config["max_position_embeddings"], merges=name in WITH_WEIGHTS)
    if name in WITH_WEIGHTS:
        _write_weights(folder, name, config)


def _write_tokenizer(folder: Path, vocab_size: int, max_length: int, *, merges: bool) -> None:
    """Ids 0-255 are the bytes, then the special tokens, then learnt merges (or fillers) up to the vocabulary size."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate(alphabet)}
    vocab |= {token: len(alphabet) + i for i, token in enumerate(SPECIAL_TOKENS)}
    pairs: list[tuple[str, str]] = []
    if merges:
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(SPECIAL_TOKENS), initial_alphabet=alphabet)
        learner.train_from_iterator(CORPUS, trainer)
        pairs = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
        vocab |= {left + right: len(vocab) + i for i, (left, right) in enumerate(pairs)}
    vocab |= {f"<|filler_{i}|>": i for i in range(len(vocab), vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def _write_weights(folder: Path, name: str, config: dict[str, Any]) -> None:
    """Normal random weights, the same on every machine for the same name."""
    import torch
    from safetensors.torch import save_file

    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key, shape in _weight_shapes(config).items():
        if len(shape) == 1:
            tensors[key] = torch.ones(shape, dtype=torch.bfloat16)
        else:
            tensors[key] = (torch.randn(shape, generator=generator) * config["initializer_range"]).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _weight_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "self_attn.q_proj.weight": (queries, hidden),
            layer + "self_attn.k_proj.weight": (keys, hidden),
            layer + "self_attn.v_proj.weight": (keys, hidden),
            layer + "self_attn.o_proj.weight": (hidden, queries),
            layer + "mlp.gate_proj.weight": (inner, hidden),
            layer + "mlp.up_proj.weight": (inner, hidden),
            layer + "mlp.down_proj.weight": (hidden, inner),
        }
    return shapes
