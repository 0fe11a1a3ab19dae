"""What loading a picture costs a core, with the transform computed there and on the device, beside what a GPU takes.

python benchmarks/loader.py DATASET [--size=512] [--pictures=64] [--batch=16] [--rounds=7] [--transform=FILE]

One process, interleaved, processor time: reading, reducing and the whole transform (host); reading and the transform's
draws alone, as --data_transform_device has it beside a GPU (device). Prints pictures a second of a core, the bytes of
a batch (that lie in shared memory once for each batch that waits), how many cores feed an H100, and what the disk must
give where the page cache can't hold the dataset.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

H100 = (500, 700)  # pictures of 512 x 512 a second by ResNet-50 in bfloat16: an estimate (issue 13), not measured here
PREFETCHED = 2  # batches that torch's DataLoader lets each process prepare
COMPETITION_BYTES = 752_803 * (512 * 512 * 2 + 128)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="a preprocessed dataset")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--transform", default="train_intermediate.json")
    options = parser.parse_args()

    import cv2
    import psutil
    import torch

    from common.datasets.batch import collate
    from common.transforms.device import DevicePart
    from common.transforms.documents import find_transform
    from common.transforms.pipeline import load_pipeline
    from config import TrainConfig
    from rsna_dataset import RSNADataset, read_metadata

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    rows = read_metadata(options.dataset)
    chosen = rows.iloc[: options.pictures]
    pipeline = load_pipeline(find_transform(options.transform), TrainConfig.data_windows)
    datasets = {
        name: RSNADataset(options.dataset, chosen, part, options.size, 0)
        for name, part in (("host", pipeline), ("device", DevicePart(pipeline)))
    }
    seconds: dict[str, list[float]] = {name: [] for name in datasets}
    sizes = {}
    for number in range(options.rounds + 1):
        for name in list(datasets)[:: 1 if number % 2 else -1]:
            started = time.process_time()
            for start in range(0, len(chosen), options.batch):
                stop = min(start + options.batch, len(chosen))
                batch = collate([datasets[name][index] for index in range(start, stop)])
                sizes[name] = max(sizes.get(name, 0), batch_bytes(batch))
            if number:  # the first round also brings the files into the page cache
                seconds[name].append((time.process_time() - started) / len(chosen))
    print(f"{options.transform}, {options.size} pixels, {len(chosen)} pictures, {options.rounds} rounds")
    for name, values in seconds.items():
        rate = 1 / statistics.median(values)
        cores = " to ".join(f"{need / rate:.1f}" for need in H100)
        print(
            f"{name:7}{1000 / rate:7.2f} ms of a core a picture, {rate:6.0f} pictures/s a core; a batch of "
            f"{options.batch}: {sizes[name] / 2**20:.1f} MiB, of which each process has {PREFETCHED} in /dev/shm; an "
            f"H100's {H100[0]} to {H100[1]} pictures/s take {cores} cores"
        )
    dataset = datasets["host"]
    files = [(dataset.image_folder / f"{name}{dataset.suffix}").stat().st_size for name in dataset.image_ids.tolist()]
    mean, memory = statistics.mean(files), psutil.virtual_memory().total
    low, high = (need * mean / 1e6 for need in H100)
    print(
        f"files: {mean / 1024:.0f} KiB each as {dataset.suffix}; {H100[0]} to {H100[1]} a second are {low:.0f} to "
        f"{high:.0f} MB/s of the disk where the page cache can't hold them"
    )
    whole = mean * len(rows)
    print(
        f"this dataset: {whole / 1e9:.1f} GB, this machine's memory: {memory / 1e9:.1f} GB; the competition's as .npy: "
        f"{COMPETITION_BYTES / 1e9:.0f} GB"
    )
    if whole > memory / 2 and dataset.suffix == ".npy":
        print("the disk rules: --pre_format=blosc2 reads about a third of the bytes, --pre_size fewer still")


def batch_bytes(batch: object) -> int:
    """Return the bytes of a batch's tensors."""
    tensors = [*batch.inputs.values(), batch.target, None if batch.plan is None else batch.plan.numbers]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


if __name__ == "__main__":
    main()
