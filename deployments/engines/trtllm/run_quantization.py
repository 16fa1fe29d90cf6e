"""Calibrates and quantizes a model with TensorRT-LLM's own quantizer. Runs in the Python that has TensorRT-LLM.

    python run_quantization.py SPEC.json

It imports nothing of raylane, which need not be installed there. The spec: `prompts`, a JSONL file with `prompt` or
`messages` a line; `dataset`, the folder to make for the quantizer; `trust_remote_code`; `arguments`, those of
tensorrt_llm.quantization.quantize_and_export.
"""

import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any


def texts(rows: list[dict[str, Any]], tokenizer: Any) -> list[str]:
    """What the model would see of every prompt: chats through the model's own template."""
    return [
        row["prompt"]
        if "prompt" in row
        else str(tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True))
        for row in rows
    ]


def write_dataset(spec: dict[str, Any]) -> None:
    """A folder that the quantizer reads as a data set: split `train`, column `text`."""
    from transformers import AutoTokenizer

    rows = [json.loads(line) for line in Path(spec["prompts"]).read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(
        spec["arguments"]["model_dir"], trust_remote_code=spec["trust_remote_code"]
    )
    folder = Path(spec["dataset"])
    folder.mkdir()
    lines = [json.dumps({"text": text}) + "\n" for text in texts(rows, tokenizer)]
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    write_dataset(spec)
    multiprocessing.set_start_method("spawn", force=True)  # the exporter's processes must not inherit CUDA's state
    from tensorrt_llm.quantization import quantize_and_export

    quantize_and_export(**spec["arguments"])


if __name__ == "__main__":
    main()
