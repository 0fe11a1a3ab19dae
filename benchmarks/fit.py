"""What the training loop costs beside a bare loop of the same mathematics, interleaved in one run.

python benchmarks/fit.py [--model=resnet18] [--size=96] [--batch=16] [--iterations=12] [--rounds=20] [--threads=1]
    fit against a bare loop, both on pictures in memory (on a GPU: on the device); aim: at least 0.98. Without a GPU the
    ratio is of processor time, of one thread: elapsed time depends on what else runs on the machine
python benchmarks/fit.py --dataset=input/datasets/rsna --model=resnet50 --size=512 --batch=64 --iterations=100
    on a GPU in bfloat16: fit with the real loader against fit on pictures that lie on the device; aim: at least 0.95
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TRAINING_IMAGES = 752_803
EPOCHS = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="of torch, where there is no GPU")
    parser.add_argument("--dataset", type=Path, help="a preprocessed dataset, for the loader's part (needs a GPU)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {name}; {options.model}, {options.size} pixels, batches of {options.batch}")
    cached = cached_loader(options, device)
    fit, bare = fit_loop(options, device, cached), bare_loop(options, device, cached)
    rates = interleaved({"bare loop": bare, "fit, pictures in memory": fit}, options)
    report(rates, "bare loop", options)
    if options.dataset is None:
        return
    if device.type != "cuda":
        print("the loader's part needs a GPU and there is none here: beside a CPU the loader is never what limits")
        return
    loader = dataset_loader(options, device)
    rates = interleaved({"pictures on the device": fit, "real loader": fit_loop(options, device, loader)}, options)
    report(rates, "pictures on the device", options)


class CachedPictures:
    """Random pictures (N, 3, size, size) that lie where they are computed with; items are their numbers.

    A batch is a piece of them: to pick pictures by number the host would send the numbers and wait for the GPU.
    """

    def __init__(self, count: int, size: int, device: object) -> None:
        import torch

        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, size, size, generator=generator).to(device)
        self.targets = (torch.rand(count, 6, generator=generator) < 0.15).float().to(device)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int, int]) -> int:
        return key[0]

    def collate(self, indices: Sequence[int]) -> object:
        from common.datasets.batch import Batch

        count = len(indices)
        start = indices[0] // count * count
        piece = slice(start, start + count)
        return Batch({"image": self.images[piece]}, self.targets[piece], [str(index) for index in indices])


def cached_loader(options: argparse.Namespace, device: object) -> object:
    """Return a loader, of this process under torchrun, whose batches cost next to nothing."""
    import torch
    from torch.utils.data import DataLoader

    from common.datasets.samplers import RandomSampler
    from common.training import distributed

    rank, processes = distributed.rank(), distributed.world_size()
    pictures = CachedPictures(8 * options.batch * processes, options.size, device)
    return DataLoader(
        pictures,
        options.batch,
        sampler=RandomSampler(len(pictures), 0, rank, processes),
        collate_fn=pictures.collate,
        drop_last=True,
        generator=torch.Generator().manual_seed(0),
    )


def dataset_loader(options: argparse.Namespace, device: object) -> object:
    """Return the loader of a real run: int16 pictures from disk, on a GPU with the transform computed there."""
    from common.datasets.loaders import make_loader
    from common.datasets.samplers import RandomSampler
    from common.transforms.documents import find_transform
    from common.transforms.pipeline import load_pipeline
    from config import TrainConfig
    from rsna.kinds.pictures import place_transform
    from rsna_dataset import RSNADataset, read_fold

    rows = read_fold(options.dataset, options.dataset.name, 0)
    config = TrainConfig()
    pipeline = load_pipeline(find_transform(config.data_train_transform), config.data_windows)
    dataset = RSNADataset(options.dataset, rows, place_transform(pipeline, config, device), options.size, 0)
    sampler = RandomSampler(len(dataset), 0)
    return make_loader(dataset, sampler, options.batch, options.workers, drop_last=True, seed=0)


def build(options: argparse.Namespace, device: object) -> tuple[object, object]:
    """Return model and optimizer, the same for all that is compared."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(options.model, num_classes=6).to(device)
    fused = device.type == "cuda"
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)


def amp_dtype(device: object) -> object:
    """bfloat16 on a GPU, float32 on a CPU."""
    import torch

    return torch.bfloat16 if device.type == "cuda" else None


def fit_loop(
    options: argparse.Namespace, device: object, loader: object, callbacks: Sequence[object] = ()
) -> Callable[[], None]:
    """Return a call that trains for the asked iterations by ``fit``, with clipping and the guard as in a real run."""
    from common.networks.network import Training
    from common.training.schedulers import build_schedule
    from rsna_network import RSNANetwork

    model, optimizer = build(options, device)

    class Measured(RSNANetwork):
        """Without the validation that ends a run."""

        def validate(self) -> dict[str, float]:
            self.settle()
            self.validated = self.iteration
            return {}

    training = Training(
        train_loader=loader,
        valid_loader=loader,
        optimizer=optimizer,
        schedule=build_schedule("constant", optimizer, options.iterations),
        iteration_num=options.iterations,
        iteration_valid=options.iterations,
        callbacks=callbacks,
    )
    network = Measured(model, device, amp_dtype(device), training)

    def run() -> None:
        network.iteration = network.validated = network.resumed_at = 0
        network.fit()

    return run


def bare_loop(options: argparse.Namespace, device: object, loader: object) -> Callable[[], None]:
    """Return a call that does the same in the fewest lines: batch, loss, backward, step."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    model, optimizer = build(options, device)
    weights = torch.tensor([1, 1, 1, 1, 1, 2], device=device) / 7
    dtype = amp_dtype(device)

    def run() -> None:
        model.train()
        done, epoch = 0, 0
        while done < options.iterations:
            loader.sampler.seek(epoch, 0)
            for batch in loader:
                with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                    logits = model(batch.inputs["image"])
                losses = binary_cross_entropy_with_logits(logits.float(), batch.target, reduction="none")
                (losses * weights).sum(dim=1).mean().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                done += 1
                if done == options.iterations:
                    break
            epoch += 1

    return run


def interleaved(runs: dict[str, Callable[[], None]], options: argparse.Namespace) -> dict[str, list[float]]:
    """Return images a second of each round, after a round to warm up; the order turns round by round."""
    import torch

    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.rounds + 1):
        for name in list(runs) if number % 2 else list(reversed(runs)):
            clock = time.perf_counter if torch.cuda.is_available() else time.process_time
            start = clock()
            runs[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                rates[name].append(options.iterations * options.batch / (clock() - start))
    return rates


def report(rates: dict[str, list[float]], reference: str, options: argparse.Namespace) -> None:
    """Print medians, the ratio of each round to the reference's, and what three epochs of the training set take."""
    import torch

    for name, values in rates.items():
        ratios = [one / other for one, other in zip(values, rates[reference], strict=True)]
        hours = EPOCHS * TRAINING_IMAGES / statistics.median(values) / 3600
        print(
            f"{name:<26}{statistics.median(values):>9.1f} images/s   ratio {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f} in {options.rounds} rounds)   {EPOCHS} epochs of "
            f"{TRAINING_IMAGES:,} images: {hours:.2f} h"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    gpu = ""
    if torch.cuda.is_available():
        gpu = f", GPU memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    print(f"host memory {peak:.1f} GiB{gpu}, both at most so far")


if __name__ == "__main__":
    main()
