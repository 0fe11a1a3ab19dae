"""What the ways to compute on a CPU (predict.py --net_compute) cost and change, interleaved in one run.

python benchmarks/computing.py WEIGHT_FILE [--slices=500] [--timed=32] [--threads=1] [--ways=float32,bfloat16]
python benchmarks/computing.py WEIGHT_FILE --source=STUDY [--rounds=5] [--threads=2] [--ways=float32,bfloat16]

Predicts slices of the split (valid, or test by --split) of the weight file's dataset by each way. Prints the processor
time of a slice (of the first --timed slices, which all ways compute batch by batch in turn) with the median ratio to
the first way, and how far the probabilities of all slices are from the first way's. Processor time of one thread is
little disturbed by what else runs on the machine. With --source the whole of predict.py --source is timed, round by
round: a study's slices a second, reading and pictures included, and the command from start to end.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Measure and print."""
    from common.training.ways import WAYS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weight_file", type=Path)
    parser.add_argument("--split", default="valid")
    parser.add_argument("--slices", type=int, default=500)
    parser.add_argument("--timed", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS))
    parser.add_argument("--source", type=Path, help="DICOM files of studies, to time the whole command")
    parser.add_argument("--rounds", type=int, default=5, help="of --source")
    options = parser.parse_args()
    if options.source is not None:
        time_command(options)
        return

    import numpy as np
    import torch

    from common.evaluation.metrics import probabilities
    from rsna.prediction.trained import load_network, split_rows

    networks = {
        name: load_network(options.weight_file, options.threads, compute=name).network.model.eval()
        for name in options.ways
    }
    trained = load_network(options.weight_file, options.threads)
    rows = split_rows(trained, options.split).iloc[: options.slices]
    capability = torch.backends.cpu.get_cpu_capability()
    print(
        f"torch {torch.__version__}, {capability}, {cpu_flags()}, {torch.get_num_threads()} threads; {len(rows)} slices"
    )
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in networks}
    for number, pictures in enumerate(batches(trained, rows, options.batch)):
        for name in list(networks)[:: 1 if number % 2 else -1]:
            timed = number * options.batch < options.timed + options.batch  # the first warms up
            if not timed and name == "channels_last":  # its values are float32's
                continue
            started = time.process_time()
            with torch.inference_mode(), WAYS[name].context():
                found = networks[name](pictures)
            if number and timed:
                seconds[name].append((time.process_time() - started) / len(pictures))
            logits[name].append(found.float())
    first = options.ways[0]
    values = {name: probabilities(torch.cat(parts).numpy()) for name, parts in logits.items()}
    spans = [
        f"{low:.3f} to {high:.3f}"
        for low, high in zip(values[first].min(axis=0), values[first].max(axis=0), strict=True)
    ]
    print(f"probabilities of {first} by label: {', '.join(spans)}")
    for name in options.ways:
        ratio = statistics.median(one / other for one, other in zip(seconds[first], seconds[name], strict=True))
        line = (
            f"{name:15}{1000 * statistics.median(seconds[name]):8.1f} ms of a core a slice, {ratio:.2f} times as quick"
        )
        change = np.abs(values[name] - values[first][: len(values[name])])
        print(f"{line}; {len(change)} slices: mean difference {change.mean():.5f}, largest {change.max():.5f}")


def time_command(options: argparse.Namespace) -> None:
    """Print how quick predict.py --source is by each way, in turn."""
    import pandas as pd

    rates: dict[str, list[float]] = {name: [] for name in options.ways}
    walls: dict[str, list[float]] = {name: [] for name in options.ways}
    for number in range(options.rounds):
        for name in options.ways[:: -1 if number % 2 else 1]:
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder) / "predictions"
                command = [sys.executable, "predict.py", f"--net_weight_file={options.weight_file.resolve()}"]
                command += [f"--source={options.source.resolve()}", f"--predict_output={output}"]
                command += [f"--net_compute={name}", f"--n_jobs={options.threads}"]
                started = time.perf_counter()
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
                walls[name].append(time.perf_counter() - started)
                studies = pd.read_csv(output / "studies.csv")
                rates[name].append(studies["slices"].sum() / studies["seconds"].sum())
    first = options.ways[0]
    print(f"{studies['slices'].sum()} slices of {len(studies)} studies, {options.threads} threads; {cpu_flags()}")
    for name in options.ways:
        ratio = statistics.median(other / one for one, other in zip(rates[first], rates[name], strict=True))
        whole = statistics.median(one / other for one, other in zip(walls[first], walls[name], strict=True))
        print(
            f"{name:15}{statistics.median(rates[name]):8.2f} slices a second, {ratio:.2f} times as quick; the whole "
            f"command {statistics.median(walls[name]):.1f} s, {whole:.2f} times as quick"
        )


def batches(trained: object, rows: object, size: int) -> object:
    """Yield the pictures of ``rows`` in batches."""
    import torch

    from common.datasets.batch import finished_picture
    from rsna.kinds.pictures import seen_pictures

    dataset = seen_pictures(trained, rows)
    for start in range(0, len(dataset), size):
        stop = min(start + size, len(dataset))
        yield torch.stack([finished_picture(dataset, index) for index in range(start, stop)])


def cpu_flags() -> str:
    """Return which units for bfloat16 the processor has."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    found = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in text]
    return " and ".join(found) or "no unit for bfloat16"


if __name__ == "__main__":
    main()
