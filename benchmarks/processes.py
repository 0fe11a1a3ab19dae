"""What an iteration costs with 1 and with several processes under torchrun, started in turn.

python benchmarks/processes.py [--processes=1,2] [--model=resnet18] [--size=96] [--batch=16] [--iterations=8]

Each process has its own batch of pictures in memory (a GPU each, or without GPUs one thread each), so that without any
cost of the exchange N processes would need the same milliseconds for N times as many images.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fit import cached_loader, fit_loop

REPEATS = 3  # timed calls of fit in each start


def main() -> None:
    """Measure and print; as a process of torchrun, train and tell the milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        train(options)
        return
    counts = [int(count) for count in options.processes.split(",")]
    found: dict[int, list[float]] = {count: [] for count in counts}
    for number in range(options.rounds):
        for count in counts if number % 2 == 0 else reversed(counts):
            found[count] += start(count)
    print(f"{options.model}, {options.size} pixels, batches of {options.batch} for each process")
    reference = statistics.median(found[counts[0]]) / counts[0]
    for count, values in found.items():
        middle = statistics.median(values)
        rate = count * options.batch / middle
        print(
            f"{count} process(es): {middle:7.1f} ms an iteration ({min(values):.1f} to {max(values):.1f}), "
            f"{1000 * rate:7.1f} images/s, {reference / middle * counts[0]:.3f} of {count / counts[0]:g} times the "
            f"rate of {counts[0]}"
        )


def start(count: int) -> list[float]:
    """Start ``count`` processes by torchrun; return the milliseconds of an iteration in each timed call."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*launch, __file__, *sys.argv[1:]], capture_output=True, text=True, env=environment)
    if result.returncode:
        sys.exit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def train(options: argparse.Namespace) -> None:
    """Be one of the processes."""
    import torch

    from common.training import distributed

    with distributed.process_group():
        gpus = torch.cuda.is_available()
        device = torch.device("cuda", distributed.local_rank()) if gpus else torch.device("cpu")
        run, milliseconds = fit_loop(options, device, cached_loader(options, device)), []
        for number in range(REPEATS + 1):
            begun = time.perf_counter()
            run()
            if gpus:
                torch.cuda.synchronize()
            if number:  # the first call warms up
                milliseconds.append(1000 * (time.perf_counter() - begun) / options.iterations)
        if distributed.is_main():
            print(json.dumps(milliseconds))


if __name__ == "__main__":
    main()
