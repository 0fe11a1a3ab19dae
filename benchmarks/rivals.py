"""What one would write without this project: python benchmarks/rivals.py plain|timm FOLDER --iterations=… --output=….

Both train on all labelled images of a preprocessed dataset of Hounsfield units, in three windows as 8-bit pictures, as
the competition's public notebooks did, and predict its test images by the last weights; on the GPU where there is one,
like what they are compared with. Called by ladder.py.

plain  Adam at its default rate, binary cross-entropy, no augmentation, no schedule.
timm   the documented recipe A3 for training ResNets from scratch (Wightman, Touvron and Jégou 2021, "ResNet strikes
       back"), built from timm's API: random resized crop, flip, RandAugment m6, binary cross-entropy, LAMB with weight
       decay 0.02, cosine with warm-up over a twentieth; the rate 0.008 of batches of 2,048 by the root of the batch's
       size. Mixup and CutMix are left out: timm's take one class for each image, and here are six labels.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WINDOWS = ((40, 80), (80, 200), (40, 380))  # centre, width in HU
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as timm's default


def pictures(folder: Path, ids: list[str], size: int) -> np.ndarray:
    """Return windowed pictures (N, size, size, 3), 0..255."""
    import cv2
    import numpy as np

    from rsna_dataset import image_path

    found = np.empty((len(ids), size, size, 3), np.uint8)
    for row, name in enumerate(ids):
        hu = np.load(image_path(folder, name), allow_pickle=False).astype(np.float32)
        if hu.shape != (size, size):
            hu = cv2.resize(hu, (size, size), interpolation=cv2.INTER_AREA)
        for channel, (center, width) in enumerate(WINDOWS):
            found[row, ..., channel] = np.clip((hu - center) / width + 0.5, 0, 1) * 255
    return found


class Images:
    """A torch dataset of pictures (N, H, W, 3) and targets (N, 6) with a transform from a PIL picture."""

    def __init__(self, images: np.ndarray, targets: np.ndarray, transform: Callable[[Any], torch.Tensor]) -> None:
        """``transform`` gives a tensor (3, H, W)."""
        self.images, self.targets, self.transform = images, targets, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, np.ndarray]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.targets[index]


def to_tensor(picture: Any) -> torch.Tensor:
    """Return a PIL picture as a normalized tensor."""
    from torchvision.transforms import functional

    return functional.normalize(functional.to_tensor(picture), MEAN, STD)


def train_plain(model: torch.nn.Module, data: Images, options: argparse.Namespace) -> None:
    """Adam, no augmentation, no schedule."""
    import torch

    optimizer = torch.optim.Adam(model.parameters())
    run(model, data, options, optimizer, lambda update: None)


def train_timm(model: torch.nn.Module, data: Images, options: argparse.Namespace) -> None:
    """The recipe, from timm's functions."""
    from timm.data import create_transform
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    data.transform = create_transform(
        options.size, is_training=True, auto_augment="rand-m6-mstd0.5-inc1", mean=MEAN, std=STD
    )
    rate = 8e-3 * math.sqrt(options.batch / 2048)
    optimizer = create_optimizer_v2(model, opt="lamb", lr=rate, weight_decay=0.02)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=options.iterations,
        min_lr=1e-6,
        warmup_epochs=options.iterations // 20,
        warmup_lr=1e-6,
    )
    scheduler.step(0)
    run(model, data, options, optimizer, scheduler.step)


def run(
    model: torch.nn.Module,
    data: Images,
    options: argparse.Namespace,
    optimizer: torch.optim.Optimizer,
    after: Callable[[int], None],
) -> None:
    """The loop that both have; ``after`` is called with the number of updates so far.

    The loss is read where it is printed: a read in each update would have the host wait for a GPU.
    """
    import torch
    from torch.utils.data import DataLoader

    generator = torch.Generator().manual_seed(options.seed)
    device = next(model.parameters()).device
    gpu = device.type == "cuda"
    loader = DataLoader(data, options.batch, shuffle=True, drop_last=True, generator=generator, pin_memory=gpu)
    loss_function = torch.nn.BCEWithLogitsLoss()
    model.train()
    update, total = 0, torch.zeros((), dtype=torch.float64, device=device)
    while update < options.iterations:
        for batch in loader:
            images, targets = (tensor.to(device, non_blocking=True) for tensor in batch)
            optimizer.zero_grad()
            loss = loss_function(model(images), targets)
            loss.backward()
            optimizer.step()
            update += 1
            total += loss.detach()
            after(update)
            if update % 100 == 0 or update == options.iterations:
                print(f"update {update}/{options.iterations}: mean loss {total.item() / update:.4f}", flush=True)
            if update == options.iterations:
                break


def main() -> None:
    """Train a rival and write its predictions of the test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rival", choices=("plain", "timm"))
    parser.add_argument("folder", type=Path, help="the folder that holds datasets/")
    parser.add_argument("--dataset", default="rsna")
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=1500)
    parser.add_argument("--n_jobs", type=int, default=0, help="cores to use; 0: all there are")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="CSV to write: id and a column for each label")
    options = parser.parse_args()

    import numpy as np
    import pandas as pd
    import timm
    import torch

    from common.files import write_csv
    from rsna_dataset import LABELS, dataset_folder, read_metadata

    torch.manual_seed(options.seed)
    if options.n_jobs:
        torch.set_num_threads(options.n_jobs)
    folder = dataset_folder(options.folder, options.dataset)
    metadata = read_metadata(folder)
    parts = {split: metadata[metadata["split"] == split] for split in ("train", "test")}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(options.model, num_classes=len(LABELS)).to(device)
    images = pictures(folder, list(parts["train"].index), options.size)
    data = Images(images, parts["train"][list(LABELS)].to_numpy(np.float32), to_tensor)
    {"plain": train_plain, "timm": train_timm}[options.rival](model, data, options)

    tests = list(parts["test"].index)
    data = Images(pictures(folder, tests, options.size), np.zeros((len(tests), len(LABELS)), np.float32), to_tensor)
    model.eval()
    with torch.inference_mode():
        loader = torch.utils.data.DataLoader(data, 128)
        predicted = torch.cat([model(batch.to(device)).sigmoid() for batch, _ in loader]).double().cpu().numpy()
    write_csv(options.output, pd.DataFrame(predicted, pd.Index(tests, name="id"), list(LABELS)), index=True)


if __name__ == "__main__":
    main()
