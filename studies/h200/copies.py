"""Copy bandwidth of each GPU and between each pair, by torch; a process of its own, so that no memory stays taken.

python -m studies.h200.copies    prints one JSON object
"""

import itertools
import json

import torch

BYTES = 4 << 30
REPEATS = 10


def seconds(source: torch.Tensor, target: torch.Tensor) -> float:
    """The mean time of one of REPEATS copies after two for warm-up, by the source GPU's own clock."""
    with torch.cuda.device(source.device):
        for _ in range(2):
            target.copy_(source)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(REPEATS):
            target.copy_(source)
        end.record()
        torch.cuda.synchronize(source.device)
        torch.cuda.synchronize(target.device)
    return float(begin.elapsed_time(end)) / 1e3 / REPEATS


def main() -> None:
    gpus = range(torch.cuda.device_count())
    first = [torch.empty(BYTES, dtype=torch.uint8, device=f"cuda:{gpu}") for gpu in gpus]
    second = [torch.empty(BYTES, dtype=torch.uint8, device=f"cuda:{gpu}") for gpu in gpus]
    own = {str(gpu): 2 * BYTES / seconds(first[gpu], second[gpu]) for gpu in gpus}
    pairs = {f"{a}-{b}": BYTES / seconds(first[a], second[b]) for a, b in itertools.permutations(gpus, 2)}
    print(json.dumps({"copy_read_plus_write_bytes_per_s": own, "gpu_to_gpu_bytes_per_s": pairs}))


if __name__ == "__main__":
    main()
