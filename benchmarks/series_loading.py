"""How many slices a second the pictures of whole series load (--net_kind=study), interleaved in one run.

python benchmarks/series_loading.py [--dataset=DATASET] [--size=512] [--workers=0,1,2] [--transform=FILE] [--series=8]

For each number of loading processes (0: the training's own), once with the transform computed in them and once with its
draws alone, as --data_transform_device has it beside a GPU, whose own work is not in these times. Without a dataset a
phantom of 512 pixels is made. Prints medians over the rounds, their range, and the bytes of a batch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if TYPE_CHECKING:
    from common.datasets.batch import Batch

NEEDED = "an H100 takes 500 to 700 pictures of 512 pixels a second of a ResNet-50 in bfloat16"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="a preprocessed dataset with folds; none: a phantom")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--workers", default="0,1,2")
    parser.add_argument("--transform", default="train_intermediate.json")
    parser.add_argument("--series", type=int, default=8, help="series of a pass")
    parser.add_argument("--batch", type=int, default=1, help="series of a batch")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, options.dataset or make_phantom(Path(folder), options.series))


def make_phantom(folder: Path, series: int) -> Path:
    """Make a dataset of a phantom with enough series to train on; return its folder."""
    import preprocessing
    import rsna_phantom

    studies = f"--phantom_studies={max(12, 2 * series)}"  # part of them is for validation and test
    rsna_phantom.main([f"--phantom_folder={folder / 'phantom'}", studies, "--phantom_image_size=512"])
    data = [f"--data_input_folder={folder}", "--data_dataset=phantom"]
    return preprocessing.main([*data, f"--pre_source={folder / 'phantom'}"])


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Time passes over the same series by all loaders in turn."""
    import torch

    from common.cli.arguments import parse_args
    from common.datasets.loaders import make_loader
    from common.datasets.samplers import SequentialSampler
    from common.datasets.sequences import collate_pictures
    from common.transforms.device import DevicePart, device_refusal
    from config import TrainConfig
    from rsna.kinds.pictures import load_pipelines
    from rsna.kinds.studies import picture_series
    from rsna_dataset import read_fold

    torch.set_num_threads(1)
    place = [f"--data_input_folder={folder.parent.parent}", f"--data_dataset={folder.name}"]
    flags = ["--net_kind=study", "--net_pretrained=1", f"--data_image_size={options.size}"]
    config = parse_args(TrainConfig, [*place, *flags, f"--data_train_transform={options.transform}"])
    rows = read_fold(folder, folder.name, 0).query("sample_type == 'train'")
    pipeline, _ = load_pipelines(folder, config)
    if refusal := device_refusal(pipeline):
        sys.exit(f"{options.transform} has no part for the device: {refusal}")
    loaders = {}
    for name, part in (("whole transform", pipeline), ("draws alone", DevicePart(pipeline))):
        data = picture_series(config, folder, rows, part)
        for workers in map(int, options.workers.split(",")):
            sampler = SequentialSampler(min(options.series, len(data)), 0)
            loaders[name, workers] = make_loader(
                data, sampler, options.batch, workers, drop_last=False, seed=0, collate=collate_pictures
            )
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in loaders}
    sizes: dict[str, int] = {}
    for number in range(options.rounds + 1):
        for key, loader in loaders.items() if number % 2 == 0 else reversed(loaders.items()):
            started = time.perf_counter()
            slices, sizes[key[0]] = walk(loader)
            if number:  # the first pass starts the processes and fills the system's cache
                rates[key].append(slices / (time.perf_counter() - started))
    print(f"{options.transform}, {options.size} pixels, batches of {options.batch} series, {slices} slices a pass")
    for (name, workers), found in rates.items():
        print(
            f"{name:15}  {workers} processes  {statistics.median(found):7.0f} slices/s "
            f"({min(found):.0f} to {max(found):.0f})  {sizes[name] / 2**20:7.1f} MiB the largest batch"
        )
    print(NEEDED)


def walk(loader: Iterable[Batch]) -> tuple[int, int]:
    """Load everything; return how many slices came and the bytes of the largest batch."""
    slices = largest = 0
    for batch in loader:
        slices += len(batch)
        largest = max(largest, sum(tensor.nbytes for tensor in batch.inputs.values()))
    return slices, largest


if __name__ == "__main__":
    main()
